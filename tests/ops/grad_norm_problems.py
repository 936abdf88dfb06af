"""Calls of the gradient norm operator as data, drawn by hypothesis, and their oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import Tensor

from fastqat import use_backend
from fastqat.ops.grad_norm.forms import Form
from fastqat.ops.grad_norm.geometry import SPATIAL, Geometry, Triple
from fastqat.ops.grad_norm.op import grad_sq_norm


class Problem(NamedTuple):
    """x ``[N, C, D, H, W]``, grad_y ``[N, O, D', H', W']``; mask and slope ``[O, C / groups, kd, kh, kw]``."""

    x: Tensor
    grad_y: Tensor
    geometry: Geometry
    mask: Tensor | None = None
    slope: Tensor | None = None
    bias: bool = True

    def run(self, backend: str, form: Form = "direct", device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Squared norms and inner products of `backend`."""
        x, grad_y, mask, slope = (None if t is None else t.to(device) for t in (self.x, self.grad_y, self.mask, self.slope))
        with use_backend(backend):
            return grad_sq_norm(x, grad_y, mask, slope, self.geometry.encode(), self.bias, form)

    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Per sample the gradients of weight and bias in fp64, by autograd."""
        weight = torch.zeros(self.geometry.weight_shape(self.x, self.grad_y), dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(self.grad_y.shape[1], dtype=torch.float64, requires_grad=True)
        groups, _, stride, padding, dilation = self.geometry
        found = []
        for x, grad_y in zip(self.x.double()[:, None], self.grad_y.double()[:, None], strict=True):
            y = F.conv3d(x, weight, bias, stride, padding, dilation, groups)
            of_weight, of_bias = torch.autograd.grad(y, (weight, bias), grad_y)
            found.append((of_weight, of_bias))
        return found

    def oracle(self) -> tuple[Tensor, Tensor]:
        """What `run` should return, in fp64."""
        norms, inners = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, self.grad_y.shape[1], dtype=torch.float64)]
        for of_weight, of_bias in self.gradients():
            masked = of_weight if self.mask is None else of_weight * self.mask
            norms.append((masked.square().sum() + of_bias.square().sum() * self.bias)[None])
            if self.slope is not None:
                inners.append((of_weight * self.slope).sum((1, 2, 3, 4))[None])
        return torch.cat(norms), torch.cat(inners) if self.slope is not None else torch.zeros(len(self.x), 0, dtype=torch.float64)

    def sizes(self) -> tuple[Tensor, Tensor]:
        """What norms and inner products were if nothing cancelled: (Σ_t ‖g_t‖ ‖u_t‖)² ``[N]``, Σ_t |g_to| ‖u_t‖ ‖slope_o‖ ``[N, O]``."""
        _, kernel, stride, padding, dilation = self.geometry
        ones = torch.ones(1, self.x.shape[1], *kernel, dtype=torch.float64)
        inputs = (F.conv3d(self.x.double().square(), ones, None, stride, padding, dilation) + self.bias).sqrt()  # [N, 1, D', H', W']
        norms = (inputs[:, 0] * self.grad_y.double().square().sum(1).sqrt()).sum((1, 2, 3)).square()
        if self.slope is None:
            return norms, torch.zeros(len(self.x), 0, dtype=torch.float64)
        return norms, (inputs * self.grad_y.double().abs()).sum((2, 3, 4)) * self.slope.double().flatten(1).norm(dim=1)

    def check(self, backend: str, form: Form = "direct", device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Relative error at most 1e-5, where nothing cancels; where something does, a few roundings of what is added up.

        Returns what it checked.
        """
        results = self.run(backend, form, device)
        for what, got, want, size in zip(("norms", "inner products"), results, self.oracle(), self.sizes(), strict=True):
            assert got.dtype == torch.float32 and got.shape == want.shape, (what, got.dtype, got.shape, want.shape)
            error, allowed = (got.cpu().double() - want).abs(), 1e-5 * want.abs() + 3e-7 * size
            assert bool((error <= allowed).all()), f"{what}: {got.tolist()} against {want.tolist()}"
        assert bool((results[0] >= 0).all())
        return results


def _sliced(x: Tensor) -> Tensor:
    """Every second column of a tensor that is NaN elsewhere."""
    wide = torch.full((*x.shape, 2), torch.nan, dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def _cropped(x: Tensor) -> Tensor:
    """The middle of a tensor that is NaN around it."""
    wide = F.pad(x, (2, 3, 1, 2, 1, 0), value=torch.nan)
    return wide[:, :, 1:, 1 : 1 + x.shape[3], 2 : 2 + x.shape[4]]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "sliced": _sliced,
    "cropped": _cropped,
    "batch_last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def conv(
    samples: int,
    channels: int,
    outputs: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    factors: bool = False,
) -> Problem:
    """A random problem, the same on every run; `factors`: with a mask of zeros and ones and a slope."""
    numbers = [(1,) * (SPATIAL - len(kernel)) + kernel]
    numbers += [(fill,) * (SPATIAL - len(kernel)) + (value,) * len(kernel) for value, fill in ((stride, 1), (padding, 0), (dilation, 1))]
    geometry = Geometry(groups, *numbers)  # type: ignore[arg-type]  # three numbers each
    return problem(samples, channels, outputs, (1,) * (SPATIAL - len(size)) + size, geometry, dtype, layout, factors)


def problem(
    samples: int,
    channels: int,
    outputs: int,
    size: tuple[int, ...],
    geometry: Geometry,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    factors: bool = False,
    bias: bool = True,
) -> Problem:
    """The same from a geometry."""
    random = torch.Generator().manual_seed(samples + channels + outputs + sum(size))
    x, grad_y = (
        LAYOUTS[layout](torch.randn(shape, generator=random).to(dtype))
        for shape in ((samples, channels, *size), (samples, outputs, *geometry.output_size(size)))
    )
    weight = geometry.weight_shape(x, grad_y)
    mask = (torch.rand(weight, generator=random) < 0.7).float() if factors else None
    return Problem(x, grad_y, geometry, mask, torch.randn(weight, generator=random) if factors else None, bias)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """1 to 3 dimensions, strides beyond the kernel, dilation, padding beyond the kernel, groups down to one channel, empty batches."""
    dims = draw(st.integers(1, SPATIAL))
    largest = {1: 120, 2: 14, 3: 6}[dims]

    def triple(least: int, most: int, fill: int) -> Triple:
        a, b, c = [fill] * (SPATIAL - dims) + [draw(st.integers(least, most)) for _ in range(dims)]
        return a, b, c

    geometry = Geometry(draw(st.sampled_from((1, 1, 2, 3, 19))), triple(1, 4, 1), triple(1, 3, 1), triple(0, 5, 0), triple(1, 3, 1))
    smallest = [max(d * (k - 1) + 1 - 2 * p, 1) for k, p, d in zip(geometry.kernel, geometry.padding, geometry.dilation, strict=True)]
    a, b, c = (max(n, m) for n, m in zip(triple(1, largest, 1), smallest, strict=True))
    channels, outputs = (geometry.groups * draw(st.integers(1, 3 if geometry.groups > 3 else 35)) for _ in range(2))
    samples, dtype, layout = draw(st.sampled_from((0, 1, 2, 3))), draw(st.sampled_from(DTYPES)), draw(st.sampled_from(sorted(LAYOUTS)))
    return problem(samples, channels, outputs, (a, b, c), geometry, dtype, layout, draw(st.booleans()), draw(st.booleans()))
