"""Statistics of the values that share one scale, over one tensor or a stream of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .layout import ScaleLayout

SAMPLE = 2**16
"""Most values per scale that are kept of a stream (a stream with many scales keeps fewer of each, 2²⁰ together)."""

_SAMPLE_OF_ALL = 2**20
_SAMPLE_LEAST = 2**8
_GOLDEN = (math.sqrt(5) - 1) / 2


def range_of(x: Tensor, layout: ScaleLayout) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of what shares a scale; both shaped like the scale."""
    if layout.axis is None:
        low, high = torch.aminmax(x)
        return low.reshape(1), high.reshape(1)
    view, shared = layout.split(x)
    return view.amin(shared), view.amax(shared)


class RangeStats:
    """Running minimum, maximum and mean magnitude of every tensor given to `update`, one of each per scale; on request a sample.

    Kept on the device of the tensors and in fp32; nothing is copied to the host. The sample is what the searching initialisations
    read: with ``sample="all"`` every value (weights, which are seen once), with ``sample="stream"`` at most `SAMPLE` values per scale,
    spread evenly over everything seen. It is chosen by position alone, with no generator: the same stream gives the same sample.

    Attributes:
        count: elements seen.
        low, high, mean_abs: shaped like the scale.
        sample: ``[scales, values]``, where one was asked for.
    """

    def __init__(self, layout: ScaleLayout, sample: str | None = None):
        self.layout = layout
        self.count = 0
        self.low: Tensor
        self.high: Tensor
        self.mean_abs: Tensor
        self.sample: Tensor
        self._sampled = sample
        self._every = 1  # of so many values one is kept

    def update(self, x: Tensor) -> None:
        """Take in one tensor; an empty one changes nothing."""
        if x.numel() == 0:
            return
        x = x.detach().float()
        low, high = range_of(x, self.layout)
        view, shared = self.layout.split(x.abs())
        mean_abs = view.mean(shared)
        if self._sampled is not None:
            self._keep(self.layout.rows(x))
        if self.count:
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            mean_abs = torch.lerp(self.mean_abs, mean_abs, x.numel() / (self.count + x.numel()))
        self.low, self.high, self.mean_abs = low, high, mean_abs
        self.count += x.numel()

    def _keep(self, rows: Tensor) -> None:
        """Add to the sample; one that grows too long is thinned, and takes in less of what follows."""
        if self._sampled == "all":
            self.sample = rows
            return
        limit = max(min(SAMPLE, _SAMPLE_OF_ALL // rows.shape[0]), _SAMPLE_LEAST)
        sample = self.sample if self.count else rows[:, :0]
        while sample.shape[1] + math.ceil(rows.shape[1] / self._every) > limit:
            sample = _thinned(sample, sample.shape[1] // 2)
            self._every *= 2
        self.sample = torch.cat([sample, _thinned(rows, math.ceil(rows.shape[1] / self._every))], 1)


def _thinned(rows: Tensor, count: int) -> Tensor:
    """`count` columns: one from each of as many equal stretches, where in it by the golden ratio, so that no pattern of the data,
    such as the width of an image, meets the same place again and again."""
    length = rows.shape[1]
    if count >= length:
        return rows
    steps = torch.arange(count, dtype=torch.float64)
    places = ((steps + torch.frac(steps * _GOLDEN)) * (length / max(count, 1))).long().clamp(max=length - 1)
    return rows.index_select(1, places.to(rows.device))
