r"""Per-sample gradients of the weight's side of a quantized layer: squared norms of weight and bias, gradients of scale and zero point.

G_n is the gradient of one sample's loss with respect to w_hat. With the derivatives of w_hat, element by element,

    mask = ∂ŵ/∂w:  1 inside the range, else 0 (straight through)
    slope = ∂ŵ/∂s = (ŵ − mask ∘ w) / s:  rne(v) − v inside, qmin − z or qmax − z outside
    shift = ∂ŵ/∂z = (mask − 1)·s

the weight's gradient is mask ∘ G_n, of which only the norm is formed, that of a scale Σ slope ∘ G_n and that of a zero point
Σ shift ∘ G_n over what shares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _backend
from ..fake_quant.op import OP as FAKE_QUANT
from ..fake_quant.reference import Grid, spread
from ..grad_norm.geometry import LINEAR, Geometry, lift, positions_last, triple
from ..grad_norm.op import grad_sq_norm, inner_products
from ..grad_norm.reference import chunks, per_sample
from .op import Needs, Operand, conv_options, nothing


class Product(NamedTuple):
    """The product of a layer as `fastqat.ops.grad_norm` reads it: x_hat and grad_y in five dimensions, positions last."""

    x: Tensor
    grad_y: Tensor
    geometry: Geometry

    @classmethod
    def of(cls, x_hat: Tensor, grad_y: Tensor, weight: Tensor, conv: list[int]) -> Product:
        if not conv:
            return cls(positions_last(x_hat), positions_last(grad_y), LINEAR)
        stride, padding, dilation, _, _, groups = conv_options(conv)
        geometry = Geometry(groups, triple(weight.shape[2:], 1), triple(stride, 1), triple(padding, 0), triple(dilation, 1))
        return cls(lift(x_hat), lift(grad_y), geometry)

    def gradients(self, shape: torch.Size) -> Iterator[Tensor]:
        """G ``[n, *shape]`` of a few samples at a time: what needs it whole is slower."""
        for rows, grads in chunks(self.x, self.grad_y, self.geometry, direct=True):
            yield per_sample(rows, grads).reshape(-1, *shape)

    def bias_sq_norm(self, counted: bool) -> Tensor:
        """Σ_o (Σ_t g)² ``[N]``, or zeros."""
        wide = torch.promote_types(self.grad_y.dtype, torch.float32)
        if not counted:
            return self.grad_y.new_zeros(self.grad_y.shape[0], dtype=wide)
        return self.grad_y.sum((2, 3, 4), dtype=wide).square().sum(1)


class WeightSide(NamedTuple):
    """Squared norm of weight and bias ``[N]``, as far as they count; gradients ``[N, scales]``, or empty."""

    sq_norm: Tensor
    scale: Tensor
    zero_point: Tensor


class _Derivatives(NamedTuple):
    """Those of w_hat, in fp32 (fp64): None where nothing is quantized, or not asked for."""

    mask: Tensor | None
    slope: Tensor | None
    shift: Tensor | None


def straight_through_mask(weight: Tensor, quant: Operand) -> Tensor:
    """∂ŵ/∂w of a quantized weight, in fp32 (fp64)."""
    mask = _derivatives(weight, quant, False, False).mask
    assert mask is not None
    return mask


def _derivatives(weight: Tensor, quant: Operand, scale: bool, zero_point: bool) -> _Derivatives:
    """In memory with the input channels innermost, as the kernels of `fastqat.ops.grad_norm` read them: one copy here for two there."""
    if not quant.code:
        return _Derivatives(None, None, None)
    wide = weight.movedim(1, -1).to(torch.promote_types(weight.dtype, torch.float32)).contiguous()
    w, grid = wide.movedim(-1, 1), quant.grid()
    mask = _backend.pick(FAKE_QUANT, w).backward(torch.ones_like(w), w, grid, 1.0, False, False, in_place=True)[0]
    s = spread(grid.scale, w, grid)
    slope = torch.addcmul(quant.apply(w), mask, w, value=-1).div_(s) if scale else None
    return _Derivatives(mask, slope, (mask - 1) * s if zero_point else None)


def weight_side_per_sample(product: Product, weight: Tensor, quant: Operand, factor: float, per_scale: bool, counts: Needs) -> WeightSide:
    """What `counts` asks for; `factor` and `per_scale` as in `Operand`."""
    factor = quant.factor(weight, factor, per_scale) if quant.code else 1.0
    found = _derivatives(weight, quant, counts.w_scale, counts.w_zero_point)
    if (counts.w_scale or counts.w_zero_point) and not _per_output(quant.grid()):
        return _formed(product, weight.shape, found, quant.grid(), factor, counts)
    x, grad_y, geometry = product
    mask, slope, shift = (None if each is None else lift(each) for each in found)
    inner = None
    if counts.weight:
        sq_norm, inner = grad_sq_norm(x, grad_y, mask, slope, geometry.encode(), counts.bias, "auto")
    else:
        sq_norm = product.bias_sq_norm(counts.bias)
        inner = None if slope is None else inner_products(x, grad_y, slope, geometry)
    outer = None if shift is None else inner_products(x, grad_y, shift, geometry)
    axis = quant.grid().axis if quant.code else None

    def total(inner: Tensor | None) -> Tensor:
        return nothing(x) if inner is None else (inner.sum(1, keepdim=True) if axis is None else inner) * factor

    return WeightSide(sq_norm, total(inner if counts.w_scale else None), total(outer))


def _per_output(grid: Grid) -> bool:
    """Whether whole outputs of the weight share a scale, one or all of them."""
    return grid.group_size is None and grid.axis in (None, 0)


def _formed(product: Product, shape: torch.Size, found: _Derivatives, grid: Grid, factor: float, counts: Needs) -> WeightSide:
    """The same for scales along the inputs of the weight, which the operators do not sum over."""
    assert found.mask is not None
    none = grid.scale.new_zeros(0, grid.scale.numel())
    norms, scales, zero_points = [none[:, 0]], [none], [none]
    for gradient in product.gradients(shape):
        if counts.weight:
            norms.append((gradient * found.mask).flatten(1).square().sum(1))
        for parts, slope in ((scales, found.slope), (zero_points, found.shift)):
            if slope is not None:
                parts.append(_shared(gradient * slope, grid) * factor)
    sq_norm = product.bias_sq_norm(counts.bias)
    return WeightSide(
        sq_norm + torch.cat(norms) if counts.weight else sq_norm,
        torch.cat(scales) if counts.w_scale else nothing(none),
        torch.cat(zero_points) if counts.w_zero_point else nothing(none),
    )


def _shared(terms: Tensor, grid: Grid) -> Tensor:
    """`terms` ``[n, *weight.shape]`` summed over what shares a scale: ``[n, scales]``."""
    axis = grid.axis or 0
    if grid.group_size is not None:
        return terms.unflatten(axis + 1, (-1, grid.group_size)).sum(axis + 2).flatten(1)
    return terms.movedim(axis + 1, 1).flatten(2).sum(2)
