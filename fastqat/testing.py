"""Cases as data, comparers and oracles, shared by tests and benchmarks."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._backend import backends_for
from .nn.layer import QuantLayer
from .ops.fake_quant.reference import Grid
from .quantizers import Quantizer


def places(op: str) -> list[tuple[str, str]]:
    """Every pair of backend and device that can run the op family `op` here: ``("cpu", "cpu")``, ``("triton", "cuda")``, ..."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [(backend, device) for device in devices for backend in backends_for(op, device)]


def pairwise(**factors: Sequence[Any]) -> list[dict[str, Any]]:
    """Few cases in which every value of one factor meets every value of each other: greedy, the same list on every run.

    Example:
        >>> len(pairwise(bits=range(2, 9), sign=["signed", "unsigned"], axis=[None, 0, 1]))
        21
    """
    levels = {name: [(name, i) for i in range(len(values))] for name, values in factors.items()}
    every = (pair for a, b in itertools.combinations(levels.values(), 2) for pair in itertools.product(a, b))
    missing = dict.fromkeys(map(frozenset, every))
    cases: list[dict[str, Any]] = []
    draw = random.Random(0)
    while missing:
        case = dict(next(iter(missing)))
        for name in factors:
            if name not in case:
                gain = {level: sum(frozenset((level, other)) in missing for other in case.items()) for level in levels[name]}
                case[name] = draw.choice([level for level in levels[name] if gain[level] == max(gain.values())])[1]
        for pair in itertools.combinations(case.items(), 2):
            missing.pop(frozenset(pair), None)
        cases.append({name: factors[name][case[name]] for name in factors})
    return cases


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
    """`got` is the sum of `terms` times `factor` within the contract's 2⁻²⁰ · Σ|terms|, plus one rounding of the result.

    A sum that is NaN or infinite must come out as the same.
    """
    wide = terms.double()
    want = (wide.sum() if dims is None else wide.sum(dims) if dims else wide) * factor
    size = (wide.abs().sum() if dims is None else wide.abs().sum(dims) if dims else wide.abs()) * abs(factor)
    values = got.double().reshape(want.shape)
    error = (values - want).abs()
    bound = 2.0**-20 * size + 2.0**-24 * want.abs() + 1e-40
    good = (error <= bound) & want.isfinite() | (values == want) | (values.isnan() & want.isnan())
    assert bool(good.all()), f"{what}: {int((~good).sum())} of {good.numel()} wrong, error {error.max():.3g}, allowed {bound.max():.3g}"


EDGES = (0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-38, 3e38, -3e38, torch.inf, -torch.inf)


def ties(scale: float, qmin: int, qmax: int) -> Tensor:
    """Every rounding tie (k + ½)·s of the range and beyond, both fp32 neighbours of each, every grid point, and the extremes."""
    middle = (torch.arange(qmin - 3, qmax + 3, dtype=torch.float64) + 0.5) * scale
    points = torch.arange(qmin - 3, qmax + 4, dtype=torch.float64) * scale
    centre = torch.cat([middle, points]).float()
    near = [centre, torch.nextafter(centre, torch.tensor(torch.inf)), torch.nextafter(centre, torch.tensor(-torch.inf))]
    return torch.cat([*near, torch.tensor([*EDGES, torch.nan])])


LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "expanded")


def with_layout(x: Tensor, layout: str) -> Tensor:
    """A 4-D tensor with the values of `x` (expanded: of its first channel) in another memory layout."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    if layout == "sliced":
        wide = torch.zeros(*x.shape[:-1], x.shape[-1] * 2, dtype=x.dtype, device=x.device)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x[:, :1].expand_as(x) if layout == "expanded" else x.contiguous()


GRANULARITIES = {"tensor": None, "channel 0": 0, "channel 1": 1, "channel -1": -1, "group 1": 1, "group -1": -1}


class FakeQuantInputs(NamedTuple):
    """What one call of `fake_quantize` and its backward take."""

    x: Tensor
    grad_y: Tensor
    grid: Grid

    def terms(self, terms: Tensor) -> tuple[Tensor, list[int] | None]:
        """`terms`, shaped like x, and the dimensions over which they are summed, as `assert_sum_close` takes them."""
        axis, group_size = self.grid.axis, self.grid.group_size
        if axis is None:
            return terms, None
        if group_size is not None:
            return terms.unflatten(axis, (self.grid.scale.shape[axis], group_size)), [axis + 1]
        return terms, [d for d in range(terms.dim()) if d != axis]


class FakeQuantCase(NamedTuple):
    """Inputs of `fake_quantize` as data; random, the same on every run.

    Attributes:
        dtype: of x.
        granularity: a key of `GRANULARITIES`; the groups are as large as a divisor of the axis up to 64 allows.
        layout: one of `LAYOUTS`.
        shape: of x, four dimensions.
        bits, signed: the integer range.
        zero_point: "none", "inside" the range, "outside" of it, "fraction" (rounded by the op), or "int32".
        scales: "any", "powers" of two (a tie is then a tie in every dtype), or "extreme".
        values: "random"; "hard" (ties, grid points, neighbours of both, `EDGES`); "nan" (hard, NaN in x, NaN, ±inf, −0 in grad_y); or
            "zeros" (random, x = 0 and the smallest scale of a quantizer in every second channel or group).
        semantics: "div" or "reciprocal".
    """

    dtype: torch.dtype
    granularity: str
    layout: str
    shape: tuple[int, ...]
    bits: int = 4
    signed: bool = True
    zero_point: str = "none"
    scales: str = "any"
    values: str = "hard"
    semantics: str = "div"

    def __str__(self) -> str:
        return "-".join(str(value).replace("torch.", "") for value in self)

    def inputs(self, device: str = "cpu") -> FakeQuantInputs:
        """x, grad_y and the grid on `device`."""
        generator = torch.Generator().manual_seed(sum(self.shape) + self.bits)
        qmin, qmax = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)
        axis, group_size, shape = self._sharing()
        scale = self._scale(shape, generator)
        zero_point = self._zero_point(shape, qmin, qmax, generator)
        s, z = (spread(t, self.shape, axis, group_size) for t in (scale, torch.zeros(shape) if zero_point is None else zero_point))
        random = torch.randn(self.shape, generator=generator)
        x = random * s * qmax if self.values in ("random", "zeros") else hard_values(s, z, qmin, qmax, generator)
        grad_y = torch.randn(self.shape, generator=generator)
        if self.values == "zeros":
            x = torch.where(s == 2.0**-23, 0.0, x)
        if self.values == "nan":
            x = torch.where(random > 2, torch.nan, x)
            wild = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])[torch.randint(0, 4, self.shape, generator=generator)]
            grad_y = torch.where(random < -1, wild, grad_y)
        x = with_layout(x.to(device, self.dtype), self.layout)
        grid = Grid(scale.to(device), None if zero_point is None else zero_point.to(device), qmin, qmax, axis, group_size, self.semantics)
        return FakeQuantInputs(x, grad_y.to(device, self.dtype), grid)

    def _sharing(self) -> tuple[int | None, int | None, tuple[int, ...]]:
        """Axis from the front, group size, shape of the scale."""
        axis = GRANULARITIES[self.granularity]
        if axis is None:
            return None, None, (1,)
        axis %= len(self.shape)
        length = self.shape[axis]
        if not self.granularity.startswith("group"):
            return axis, None, (length,)
        size = max((d for d in range(1, min(length, 65)) if length % d == 0), default=1)
        return axis, size, (*self.shape[:axis], length // size, *self.shape[axis + 1 :])

    def _scale(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        scale = torch.rand(shape, generator=generator) * 0.3 + 0.01
        if self.scales == "powers":
            scale = scale.log2().round().exp2()
        if self.scales == "extreme":
            scale = torch.tensor([2.0**-23, 1e-30, 0.0371, 1e30])[torch.randint(0, 4, shape, generator=generator)]
        if self.values == "zeros":
            scale.view(-1)[::2] = 2.0**-23
        return scale

    def _zero_point(self, shape: tuple[int, ...], qmin: int, qmax: int, generator: torch.Generator) -> Tensor | None:
        inside = torch.randint(qmin, qmax + 1, shape, generator=generator, dtype=torch.int32)
        if self.zero_point == "outside":
            return torch.where(inside % 2 == 0, qmin - 7, qmax + 5).float()
        quarters = torch.randint(-2, 3, shape, generator=generator) / 4  # −½ … ½: ties of the zero point itself
        choices = {"none": None, "inside": inside.float(), "fraction": inside + quarters, "int32": inside}
        return choices[self.zero_point]


def spread(values: Tensor, shape: Sequence[int], axis: int | None, group_size: int | None) -> Tensor:
    """A value for every element of a tensor of `shape` from one per tensor, per channel, or per group."""
    if axis is None or group_size is None:
        return values.reshape([-1 if d == axis else 1 for d in range(len(shape))]).expand(shape)
    return values[(slice(None),) * axis + (torch.arange(shape[axis]) // group_size,)]


def hard_values(scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, generator: torch.Generator) -> Tensor:
    """A hard fp32 value for each element of `scale`: a tie or a grid point of the range and beyond, a neighbour of one, or an edge."""
    step = torch.randint(qmin - 3, qmax + 4, scale.shape, generator=generator) - zero_point.round().double()
    kind = torch.randint(0, 7, scale.shape, generator=generator)
    centre = ((step + 0.5 * (kind < 3)) * scale).float()
    centre = torch.where(kind % 3 == 1, torch.nextafter(centre, torch.tensor(torch.inf)), centre)
    centre = torch.where(kind % 3 == 2, torch.nextafter(centre, torch.tensor(-torch.inf)), centre)
    edge = torch.tensor(EDGES)[torch.randint(0, len(EDGES), scale.shape, generator=generator)]
    return torch.where(kind == 6, edge, centre)


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
