"""Fake quantization in plain torch: forward, backward and codes. The truth that every other backend is compared with, bit for bit.

fp32 arithmetic whatever the storage type (fp64 for fp64 inputs), one cast to the storage type at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SEMANTICS = ("div", "reciprocal")
_CODE_TYPES = (torch.int8, torch.uint8, torch.int16, torch.int32)


def code_dtype(qmin: int, qmax: int) -> torch.dtype:
    """The smallest of int8, uint8, int16, int32 that holds ``[qmin, qmax]``."""
    return next(dtype for dtype in _CODE_TYPES if torch.iinfo(dtype).min <= qmin and qmax <= torch.iinfo(dtype).max)


class Grid(NamedTuple):
    """The integer grid of a quantizer, as every backend takes it.

    `axis` counts from the front, None is per tensor. With `group_size` the axis is cut into groups of neighbours, and scale and zero point
    have the shape of x with the number of groups in its place.
    """

    scale: Tensor
    zero_point: Tensor | None
    qmin: int
    qmax: int
    axis: int | None
    group_size: int | None
    semantics: str


class _Ready(NamedTuple):
    """x and the grid in the compute type, shaped to broadcast: scale, rounded zero point, and the bounds ``qmin − z``, ``qmax − z``."""

    x: Tensor
    s: Tensor
    z: Tensor
    low: Tensor
    high: Tensor


def spread(values: Tensor, x: Tensor, grid: Grid) -> Tensor:
    """`values`, shaped like the scale, so that they broadcast over x."""
    if grid.axis is not None and grid.group_size is not None:
        return values.repeat_interleave(grid.group_size, grid.axis)
    shape = [1] * x.dim()
    if grid.axis is not None:
        shape[grid.axis] = -1
    return values.reshape(shape)


def _total(terms: Tensor, grid: Grid) -> Tensor:
    """`terms`, shaped like x, summed in fp64 over what shares a scale."""
    wide = terms.double()
    if grid.axis is None:
        return wide.sum()
    if grid.group_size is not None:
        return wide.unflatten(grid.axis, (grid.scale.shape[grid.axis], grid.group_size)).sum(grid.axis + 1)
    dims = [d for d in range(wide.dim()) if d != grid.axis]
    return wide.sum(dims) if dims else wide


def _prepare(x: Tensor, grid: Grid) -> _Ready:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    s = spread(grid.scale.to(compute), x, grid)
    z = torch.zeros_like(s) if grid.zero_point is None else spread(grid.zero_point.to(compute).round(), x, grid)
    return _Ready(x.to(compute), s, z, grid.qmin - z, grid.qmax - z)


def _clamp(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp that lets NaN through."""
    return torch.where(v > high, high, torch.where(v < low, low, v))


def _steps(ready: _Ready, semantics: str) -> Tensor:
    """v = x / s, or x · fp32(1 / s)."""
    return ready.x / ready.s if semantics == "div" else ready.x * ready.s.reciprocal()


def _centered(ready: _Ready, semantics: str) -> Tensor:
    """c − z; adding zero turns −0 into +0."""
    return _clamp(_steps(ready, semantics), ready.low, ready.high).round() + 0.0


def forward(x: Tensor, grid: Grid) -> Tensor:
    """x_hat = (clamp(rne(v) + z, qmin, qmax) − z) · s, in the dtype and layout of x."""
    ready = _prepare(x, grid)
    return torch.empty_like(x).copy_(_centered(ready, grid.semantics) * ready.s)


def codes(x: Tensor, grid: Grid) -> Tensor:
    """c = clamp(rne(v) + z, qmin, qmax); NaN gives qmin."""
    ready = _prepare(x, grid)
    c = _centered(ready, grid.semantics) + ready.z
    return torch.empty_like(x, dtype=code_dtype(grid.qmin, grid.qmax)).copy_(torch.where(c.isnan(), grid.qmin, c))


def gradient_terms(grad_y: Tensor, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Per element: grad_x, the term of the scale gradient and the term of the zero point gradient, before `grad_factor`."""
    ready = _prepare(x, grid)
    g = grad_y.to(ready.x.dtype)
    v = _steps(ready, grid.semantics)
    rounded = v.round()
    tested = v if grid.semantics == "div" else rounded
    below, above = tested < ready.low, tested > ready.high
    slope = rounded - v if grid.semantics == "div" else (rounded * ready.s - ready.x) * ready.s.reciprocal()
    grad_x = torch.where((tested >= ready.low) & (tested <= ready.high), g, 0.0)
    scale_terms = g * torch.where(below, ready.low, torch.where(above, ready.high, slope))
    zero_point_terms = torch.where(below | above, -(g * ready.s), v - v)  # v − v: 0 inside, NaN where x is NaN
    return grad_x, scale_terms, zero_point_terms


def backward(
    grad_y: Tensor, x: Tensor, grid: Grid, grad_factor: float, needs_scale: bool, needs_zero_point: bool, in_place: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """grad_x, and the gradients of scale and zero point summed in fp64 over what shares them, times `grad_factor`.

    `in_place` allows a backend to put grad_x into grad_y; the reference never does.
    """
    grad_x, scale_terms, zero_point_terms = gradient_terms(grad_y, x, grid)

    def total(terms: Tensor) -> Tensor:
        return (_total(terms, grid) * grad_factor).to(grid.scale.dtype).reshape(grid.scale.shape)

    grad_scale = total(scale_terms) if needs_scale else None
    return torch.empty_like(x).copy_(grad_x), grad_scale, total(zero_point_terms) if needs_zero_point else None
