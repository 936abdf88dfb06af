"""What a convolution reads: every layer that multiplies, linear ones too, as a convolution over three spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Triple = tuple[int, int, int]
SPATIAL = 3


class Geometry(NamedTuple):
    """Groups, and kernel size, stride, padding and dilation along depth, height and width.

    A 2-D convolution has depth 1, a 1-D one height 1 as well. A linear layer on ``[N, T, I]`` is a 1-D convolution with kernel size 1 over
    T positions, read through the view ``[N, I, 1, 1, T]``.
    """

    groups: int
    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple

    @property
    def taps(self) -> int:
        """Elements of the kernel per pair of channels."""
        return math.prod(self.kernel)

    def encode(self) -> list[int]:
        """The 13 integers that the operators take."""
        return [self.groups, *self.kernel, *self.stride, *self.padding, *self.dilation]

    @classmethod
    def decode(cls, numbers: Sequence[int]) -> Geometry:
        """Undo `encode`."""
        groups, *rest = numbers
        return cls(groups, *(tuple(rest[i : i + SPATIAL]) for i in range(0, 4 * SPATIAL, SPATIAL)))  # type: ignore[arg-type]  # mypy does not know that each slice has three

    def output_size(self, size: Sequence[int]) -> Triple:
        """Output positions along each dimension for an input of `size` positions."""
        d, h, w = (
            (n + 2 * p - dilation * (k - 1) - 1) // s + 1
            for n, k, s, p, dilation in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return d, h, w

    def weight_shape(self, x: Tensor, grad_y: Tensor) -> tuple[int, ...]:
        """``[O, C / groups, kd, kh, kw]``."""
        return grad_y.shape[1], x.shape[1] // self.groups, *self.kernel


LINEAR = Geometry(1, (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1))


def triple(values: Sequence[int], fill: int) -> Triple:
    """`values`, one per spatial dimension of the layer, with `fill` for the dimensions that it lacks."""
    d, h, w = (*[fill] * (SPATIAL - len(values)), *values)
    return d, h, w


def lift(x: Tensor) -> Tensor:
    """``[N, C, (D,) (H,) W]`` as a view ``[N, C, D, H, W]``."""
    for _ in range(2 + SPATIAL - x.dim()):
        x = x.unsqueeze(2)
    return x


def positions_last(x: Tensor) -> Tensor:
    """Input or output ``[N, ..., I]`` of a linear layer as a view ``[N, I, 1, 1, T]``."""
    rows = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
    return rows.transpose(1, 2)[:, :, None, None]
