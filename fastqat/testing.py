"""Cases as data, comparers and oracles, shared by tests and benchmarks."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._backend import backends_for
from .nn.layer import QuantLayer
from .quantizers import Quantizer


def places(op: str) -> list[tuple[str, str]]:
    """Every pair of backend and device that can run the op family `op` here: ``("cpu", "cpu")``, ``("triton", "cuda")``, ..."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [(backend, device) for device in devices for backend in backends_for(op, device)]


def assert_same_bits(got: Tensor, want: Tensor, what: str = "tensors") -> None:
    """Equal shape, dtype and bits; −0 differs from +0, any NaN equals any NaN."""
    assert got.shape == want.shape and got.dtype == want.dtype, (
        f"{what}: {got.dtype} {list(got.shape)} against {want.dtype} {list(want.shape)}"
    )
    same = (got == want) & (torch.signbit(got) == torch.signbit(want)) if got.dtype.is_floating_point else got == want
    same |= got.isnan() & want.isnan()
    wrong = int((~same).sum())
    if wrong:
        where = torch.nonzero(~same)[0].tolist()
        raise AssertionError(f"{what}: {wrong} of {got.numel()} differ, first at {where}: {got[tuple(where)]} against {want[tuple(where)]}")


def assert_sum_close(got: Tensor, terms: Tensor, factor: float, dims: list[int] | None, what: str = "sum") -> None:
    """`got` is the sum of `terms` times `factor` within the contract's 2⁻²⁰ · Σ|terms|, plus one rounding of the result."""
    wide = terms.double()
    want = (wide.sum() if dims is None else wide.sum(dims) if dims else wide) * factor
    size = (wide.abs().sum() if dims is None else wide.abs().sum(dims) if dims else wide.abs()) * abs(factor)
    error = (got.double().reshape(want.shape) - want).abs()
    bound = 2.0**-20 * size + 2.0**-24 * want.abs() + 1e-40
    both_nan = got.double().reshape(want.shape).isnan() & want.isnan()
    assert bool(((error <= bound) | both_nan).all()), f"{what}: error {error.max():.3g}, allowed {bound.max():.3g}"


def ties(scale: float, qmin: int, qmax: int) -> Tensor:
    """Every rounding tie (k + ½)·s of the range and beyond, both fp32 neighbours of each, every grid point, and the extremes."""
    middle = (torch.arange(qmin - 3, qmax + 3, dtype=torch.float64) + 0.5) * scale
    points = torch.arange(qmin - 3, qmax + 4, dtype=torch.float64) * scale
    centre = torch.cat([middle, points]).float()
    near = [centre, torch.nextafter(centre, torch.tensor(torch.inf)), torch.nextafter(centre, torch.tensor(-torch.inf))]
    edge = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, torch.inf, -torch.inf, torch.nan])
    return torch.cat([*near, edge])


LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "expanded")


def with_layout(x: Tensor, layout: str) -> Tensor:
    """A 4-D tensor with the values of `x` (expanded: of its first channel) in another memory layout."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    if layout == "sliced":
        wide = torch.zeros(*x.shape[:-1], x.shape[-1] * 2, dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x[:, :1].expand_as(x) if layout == "expanded" else x.contiguous()


def eager_lsq(x: Tensor, scale: Tensor, qmin: int, qmax: int, grad_factor: float) -> Tensor:
    """LSQ written in plain autograd operations, as most training scripts have it: the baseline of the benchmarks."""
    step = (scale - scale * grad_factor).detach() + scale * grad_factor
    v = (x / step).clamp(qmin, qmax)
    return (v + (v.round() - v).detach()) * step


class EagerLSQLayer(nn.Module):
    """A quantized Conv2d or Linear the way most training scripts have it: quantize x, quantize w, call torch; autograd keeps all of it."""

    def __init__(self, layer: QuantLayer):
        super().__init__()
        own = dict(layer.named_parameters(recurse=False))
        self.weight = nn.Parameter(own["weight"].detach().clone())
        self.bias = nn.Parameter(own["bias"].detach().clone()) if "bias" in own else None
        names = ("stride", "padding", "dilation", "groups") if isinstance(layer, nn.Conv2d) else ()
        self.options = {name: getattr(layer, name) for name in names}
        for role in ("weight", "activation"):
            quantizer: Quantizer | None = getattr(layer, f"{role}_quantizer")
            setattr(self, f"{role}_scale", None if quantizer is None else nn.Parameter(quantizer.scale.detach().clone()))
            setattr(self, f"{role}_range", None if quantizer is None else quantizer.qrange())

    def _quantized(self, role: str, values: Tensor, elements: int) -> Tensor:
        scale, limits = getattr(self, f"{role}_scale"), getattr(self, f"{role}_range")
        if scale is None:
            return values
        qmin, qmax = limits
        return eager_lsq(values, scale, qmin, qmax, 1 / math.sqrt(elements * qmax))

    def forward(self, x: Tensor) -> Tensor:
        x = self._quantized("activation", x, x[0].numel())
        weight = self._quantized("weight", self.weight, self.weight.numel())
        return F.conv2d(x, weight, self.bias, **self.options) if self.options else F.linear(x, weight, self.bias)


def eager_lsq_copy(model: nn.Module) -> nn.Module:
    """A copy of a model that `fastqat.quantize` made (per tensor, Conv2d and Linear) with every quantized layer an `EagerLSQLayer`."""
    model = copy.deepcopy(model)
    for path, layer in [(path, layer) for path, layer in model.named_modules() if isinstance(layer, QuantLayer)]:
        setattr(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], EagerLSQLayer(layer))
    return model
