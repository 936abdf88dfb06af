"""Statistics of the values that share one scale, over one tensor or a stream of them."""

from __future__ import annotations

import torch
from torch import Tensor


def range_of(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of x: two tensors [1], or [x.shape[axis]]."""
    if axis is None:
        low, high = torch.aminmax(x)
        return low.reshape(1), high.reshape(1)
    rows, dims = _rows(x, axis)
    return rows.amin(dims), rows.amax(dims)


def _rows(x: Tensor, axis: int) -> tuple[Tensor, list[int]]:
    """x with one dimension more, and every dimension but `axis`: a reduction that works on one-dimensional x too."""
    rows = x.unsqueeze(-1)
    return rows, [dim for dim in range(rows.dim()) if dim != axis % x.dim()]


class RangeStats:
    """Running minimum, maximum and mean magnitude of every tensor given to `update`, one of each per scale.

    Kept on the device of the tensors and in fp32; nothing is copied to the host.
    """

    def __init__(self, axis: int | None):
        self.axis = axis
        self.count = 0
        self.low: Tensor
        self.high: Tensor
        self.mean_abs: Tensor

    def update(self, x: Tensor) -> None:
        """Take in one tensor; an empty one changes nothing."""
        if x.numel() == 0:
            return
        x = x.detach().float()
        low, high = range_of(x, self.axis)
        if self.axis is None:
            mean_abs = x.abs().mean().reshape(1)
        else:
            rows, dims = _rows(x.abs(), self.axis)
            mean_abs = rows.mean(dims)
        if self.count:
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            mean_abs = torch.lerp(self.mean_abs, mean_abs, x.numel() / (self.count + x.numel()))
        self.low, self.high, self.mean_abs = low, high, mean_abs
        self.count += x.numel()
