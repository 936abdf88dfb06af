"""Fake quantization in plain torch: forward, backward and codes. The truth that every other backend is compared with, bit for bit.

fp32 arithmetic whatever the storage type (fp64 for fp64 inputs), one cast to the storage type at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CODE_TYPES = (torch.int8, torch.uint8, torch.int16, torch.int32)


def code_dtype(qmin: int, qmax: int) -> torch.dtype:
    """The smallest of int8, uint8, int16, int32 that holds ``[qmin, qmax]``."""
    return next(dtype for dtype in _CODE_TYPES if torch.iinfo(dtype).min <= qmin and qmax <= torch.iinfo(dtype).max)


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """`values`, one per channel or a single one, shaped to broadcast against `x`."""
    if axis is None:
        return values.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _prepare(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x and scale in the compute type, the rounded zero point, and the bounds ``qmin − z``, ``qmax − z``."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    s = _along(scale.to(compute), x, axis)
    z = torch.zeros_like(s) if zero_point is None else _along(zero_point.to(compute).round(), x, axis)
    return x.to(compute), s, z, qmin - z, qmax - z


def _clamp(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp that lets NaN through."""
    return torch.where(v > high, high, torch.where(v < low, low, v))


def _steps(x: Tensor, s: Tensor, semantics: str) -> Tensor:
    """v = x / s, or x · fp32(1 / s)."""
    return x / s if semantics == "div" else x * s.reciprocal()


def forward(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None, semantics: str) -> Tensor:
    """x_hat = (clamp(rne(v) + z, qmin, qmax) − z) · s, in the dtype and layout of x."""
    xc, s, _, low, high = _prepare(x, scale, zero_point, qmin, qmax, axis)
    centered = _clamp(_steps(xc, s, semantics), low, high).round() + 0.0  # adding zero turns −0 into +0
    return torch.empty_like(x).copy_(centered * s)


def codes(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None, semantics: str) -> Tensor:
    """c = clamp(rne(v) + z, qmin, qmax); NaN gives qmin."""
    xc, s, z, low, high = _prepare(x, scale, zero_point, qmin, qmax, axis)
    c = _clamp(_steps(xc, s, semantics), low, high).round() + z
    return torch.empty_like(x, dtype=code_dtype(qmin, qmax)).copy_(torch.where(c.isnan(), qmin, c))


def gradient_terms(
    grad_y: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None, semantics: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Per element: grad_x, the term of the scale gradient and the term of the zero point gradient, before `grad_factor`."""
    xc, s, _, low, high = _prepare(x, scale, zero_point, qmin, qmax, axis)
    g = grad_y.to(xc.dtype)
    v = _steps(xc, s, semantics)
    rounded = v.round()
    tested = v if semantics == "div" else rounded
    below, above = tested < low, tested > high
    slope = rounded - v if semantics == "div" else (rounded * s - xc) * s.reciprocal()
    grad_x = torch.where((tested >= low) & (tested <= high), g, 0.0)
    scale_terms = g * torch.where(below, low, torch.where(above, high, slope))
    zero_point_terms = torch.where(below | above, -(g * s), v - v)  # v − v: 0 inside, NaN where x is NaN
    return grad_x, scale_terms, zero_point_terms


def backward(
    grad_y: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    axis: int | None,
    semantics: str,
    grad_factor: float,
    needs_scale: bool,
    needs_zero_point: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """grad_x, and the gradients of scale and zero point summed in fp64 over what shares them, times `grad_factor`."""
    grad_x, scale_terms, zero_point_terms = gradient_terms(grad_y, x, scale, zero_point, qmin, qmax, axis, semantics)
    dims = [d for d in range(x.dim()) if d != axis]

    def total(terms: Tensor) -> Tensor:
        wide = terms.double()
        summed = wide.sum() if axis is None else wide.sum(dims) if dims else wide
        return (summed * grad_factor).to(scale.dtype).reshape(scale.shape)

    grad_scale = total(scale_terms) if needs_scale else None
    return torch.empty_like(x).copy_(grad_x), grad_scale, total(zero_point_terms) if needs_zero_point else None
