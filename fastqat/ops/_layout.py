"""Tensors in storage order: a dense tensor of any layout is read as ``[blocks, outer, channels, inner]`` without a copy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def storage_order(x: Tensor) -> list[int] | None:
    """Dimensions of `x` from the slowest to the fastest in memory, those of size 1 left out; None when `x` has gaps or overlaps."""
    strides = x.stride()
    dims = sorted((d for d in range(x.dim()) if x.shape[d] != 1), key=lambda d: -strides[d])
    expected = 1
    for d in reversed(dims):
        if strides[d] != expected:
            return None
        expected *= x.shape[d]
    return dims


def dense(x: Tensor) -> Tensor:
    """`x` itself when its elements fill their memory without gaps (contiguous, channels-last, transposed), else one dense copy."""
    if x.is_contiguous() or x.numel() == 0 or storage_order(x) is not None:
        return x
    return x.clone(memory_format=torch.preserve_format)


def rows(x: Tensor) -> Tensor:
    """The matrix `x` itself where the elements of a row are neighbours, else a copy."""
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def like(x: Tensor, other: Tensor) -> Tensor:
    """`other` with the strides of the dense tensor `x`: itself when they agree, else one copy."""
    if other.stride() == x.stride():
        return other
    return torch.empty_like(x, dtype=other.dtype).copy_(other)


class View(NamedTuple):
    """A dense tensor in storage order as ``[blocks, outer, channels, inner]``.

    Element ``(b, o, c, i)`` uses scale ``b * channels + c``; what shares a scale is summed over o and i. Per tensor all but `inner` are 1,
    per channel `blocks` is 1; groups of neighbours are the channels of one block, groups along another axis a block each.
    """

    blocks: int
    outer: int
    channels: int
    inner: int


def quant_view(x: Tensor, axis: int | None, group_size: int | None = None) -> View:
    """How the dense `x` shares its scales: per tensor, per channel along `axis`, or per group of `group_size` along `axis`."""
    if axis is None:
        return View(1, 1, 1, x.numel())
    if x.numel() == 0:
        return View(1, 0, x.shape[axis] if group_size is None else 0, 1)
    length, inner = x.shape[axis], 1 if x.shape[axis] == 1 else x.stride(axis)
    if group_size is None:
        return View(1, 1, 1, x.numel()) if length == 1 else View(1, x.numel() // (length * inner), length, inner)
    groups = x.numel() // (group_size * inner)
    return View(1, 1, groups, group_size) if inner == 1 else View(groups, group_size, inner, 1)


def _every_dim(x: Tensor) -> list[int]:
    """All dimensions of the dense `x` in storage order; those of size 1 last, where they change nothing."""
    order = storage_order(x) or []
    return order + [d for d in range(x.dim()) if d not in order]


def by_storage(x: Tensor, scale: Tensor) -> Tensor:
    """A value per group, shaped like `x` with a shorter axis, as contiguous memory in the storage order of `x`: what a `View` counts."""
    if scale.dim() != x.dim() or x.is_contiguous():
        return scale.contiguous()
    return scale.permute(_every_dim(x)).contiguous()


def from_storage(x: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `by_storage`: `values` in the storage order of `x`, returned contiguous with `shape`."""
    if len(shape) != x.dim() or x.is_contiguous():
        return values if values.shape == shape else values.view(shape)
    order = _every_dim(x)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return values.view([shape[d] for d in order]).permute(inverse).contiguous()
