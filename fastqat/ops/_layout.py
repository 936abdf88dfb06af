"""Tensors in storage order: a dense tensor of any layout is read as ``[outer, channels, inner]`` without a copy."""

from __future__ import annotations

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


def like(x: Tensor, other: Tensor) -> Tensor:
    """`other` with the strides of the dense tensor `x`: itself when they agree, else one copy."""
    if other.stride() == x.stride():
        return other
    return torch.empty_like(x, dtype=other.dtype).copy_(other)


def channel_view(x: Tensor, axis: int | None) -> tuple[int, int, int]:
    """Sizes ``(outer, channels, inner)`` of the dense `x` in storage order around `axis`; one channel when `axis` is None."""
    if axis is None:
        return 1, 1, x.numel()
    channels = x.shape[axis]
    if x.numel() == 0:
        return 0, channels, 1
    if channels == 1:
        return 1, 1, x.numel()
    inner = x.stride(axis)
    return x.numel() // (channels * inner), channels, inner
