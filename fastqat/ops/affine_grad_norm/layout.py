"""The layouts that the kernels read: ``[N, C, T]`` with neighbouring channels or neighbouring positions, and any other strides."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arranged(NamedTuple):
    """x and grad_y ``[N, C, T]``, both with stride 1 along channels (`channels_inner`) or along positions."""

    x: Tensor
    grad_y: Tensor
    channels_inner: bool


def _has_stride_1(t: Tensor, dim: int) -> bool:
    return t.stride(dim) == 1 or t.shape[dim] == 1


def arranged(x: Tensor, grad_y: Tensor, per_position: bool) -> Arranged:
    """x and grad_y as they lie where the kernels can read them so; grad_y is copied to the layout of x, and x where it has neither.

    `per_position`: each position has its own statistics, which are read along the channels.
    """
    channels_inner = per_position or (_has_stride_1(x, 1) and (x.shape[1] > 1 or x.shape[2] <= 1))
    inner = 1 if channels_inner else 2
    return Arranged(_with_stride_1(x, inner), _with_stride_1(grad_y, inner), channels_inner)


def _with_stride_1(t: Tensor, dim: int) -> Tensor:
    """`t` with stride 1 along `dim`: itself, or one copy."""
    return t if _has_stride_1(t, dim) else t.transpose(dim, 2).contiguous().transpose(dim, 2)
