"""Where the Triton kernels find what they read: sizes and strides of both tensors, with as few spatial dimensions as they allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from .geometry import Geometry, Triple

Strides = tuple[int, int, int, int, int]


class Conv(NamedTuple):
    """One argument of every kernel; triton compiles once for each pattern of ones and multiples of 16 among these integers."""

    x: Strides  # elements between neighbours in x [N, C, D, H, W]
    grad_y: Strides  # in grad_y [N, O, D', H', W']; with `Addresses.flat` the last is between neighbouring positions
    size: Triple  # D, H, W
    out: Triple  # D', H', W'
    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    groups: int
    channels: int  # of one group: C / groups
    outputs: int  # O / groups

    @property
    def positions(self) -> int:
        """Output positions of a sample."""
        return math.prod(self.out)

    @property
    def columns(self) -> int:
        """Columns of the gradient as a matrix: taps outside, the channels of a group inside."""
        return math.prod(self.kernel) * self.channels


class Addresses(NamedTuple):
    """The `conv` of two tensors, and what the kernels are compiled for."""

    conv: Conv
    dims: int  # spatial dimensions that are more than one position, counted from the last: 1 to 3
    checked: int  # of these, how many windows may reach over the edge: all, or 0 without padding
    flat: bool  # the positions of grad_y are equally spaced in memory
    wide: bool  # offsets inside a sample take 64 bits

    @property
    def constants(self) -> dict[str, object]:
        """The compile-time arguments."""
        return {"DIMS": self.dims, "CHECKED": self.checked, "FLAT": self.flat, "WIDE": self.wide}


def addresses(x: Tensor, grad_y: Tensor, geometry: Geometry) -> Addresses:
    """Addresses for x ``[N, C, D, H, W]`` and grad_y ``[N, O, D', H', W']`` with any strides.

    A kernel of one element without padding reads every stride-th position, which is another view of x; where both tensors then have
    equally spaced positions they are one dimension, as in a linear layer.

    Example:
        >>> import torch
        >>> from fastqat.ops.grad_norm.geometry import Geometry
        >>> x, grad_y = torch.empty(2, 8, 1, 6, 6), torch.empty(2, 4, 1, 3, 3)
        >>> strided = Geometry(1, (1, 1, 1), (1, 2, 2), (0, 0, 0), (1, 1, 1))
        >>> found = addresses(x, grad_y, strided)
        >>> found.dims, found.conv.size, found.conv.x
        (2, (1, 3, 3), (288, 36, 36, 12, 2))
        >>> addresses(x[..., :3, :3].contiguous(), grad_y, strided._replace(stride=(1, 1, 1))).conv.out
        (1, 1, 9)
    """
    groups, kernel, stride, padding, dilation = geometry
    out = _triple(grad_y.shape[2:])
    pointwise = geometry.taps == 1 and not any(padding)
    if pointwise:
        x, stride = x[:, :, :: stride[0], :: stride[1], :: stride[2]], (1, 1, 1)
    size = _triple(x.shape[2:])
    steps, grad_steps = _spacing(x), _spacing(grad_y)
    x_strides, grad_strides = x.stride(), grad_y.stride()
    if grad_steps is not None:
        grad_strides = (*grad_strides[:2], 0, 0, grad_steps)
        if pointwise and steps is not None:
            x_strides, size, out = (*x_strides[:2], 0, 0, steps), (1, 1, math.prod(out)), (1, 1, math.prod(out))
    conv = Conv(
        x_strides,  # type: ignore[arg-type]  # five of them, as x has five dimensions
        grad_strides,  # type: ignore[arg-type]  # five of them, as x has five dimensions
        size,
        out,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        x.shape[1] // groups,
        grad_y.shape[1] // groups,
    )
    dims = max((3 - d for d in range(3) if out[d] > 1 or kernel[d] > 1 or padding[d] > 0), default=1)
    extent = max(sum((n - 1) * s for n, s in zip(t.shape[1:], t.stride()[1:], strict=True)) for t in (x, grad_y))
    wide = max(extent, grad_y.shape[1] * conv.columns) >= 2**31
    return Addresses(conv, dims, dims if any(padding) else 0, grad_steps is not None, wide)


def _triple(values: Sequence[int]) -> Triple:
    d, h, w = values
    return d, h, w


def _spacing(x: Tensor) -> int | None:
    """Elements between neighbouring positions, in order, when all neighbours are equally far apart; 0 for a single position."""
    spread = [(n, s) for n, s in zip(x.shape[2:], x.stride()[2:], strict=True) if n > 1]
    if not spread:
        return 0
    for (_, outer), (n, inner) in pairwise(spread):
        if outer != n * inner:
            return None
    return spread[-1][1]
