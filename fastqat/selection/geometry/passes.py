"""Greedy picks by one pass over all features for each, on a CPU: the fastest way while these stay in its cache."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastqat.selection.geometry.blocks import row_blocks, unit_error
from fastqat.selection.geometry.metrics import Metric

MOST_BYTES = 12 << 20
"""Features that take more in fp64 are left to the ways that read them less often. With one thread on a core with 1 MB of L2 and 32 MB
of L3, 10 % picked, both take as long at about 12 MB for herding and 14 MB for k-center."""

Doubles = NDArray[np.float64]


def few_enough(features: Tensor, width: int) -> bool:
    """Whether passes over `features` ``[N, D]``, `width` numbers for each sample, are the fastest way."""
    return features.device.type == "cpu" and 8 * len(features) * width <= MOST_BYTES


def farthest_by_passes(features: Tensor, metric: Metric, budget: int, first: int) -> list[int]:
    """The picks of `farthest_first`.

    A pass is a matrix-vector product in fp64. Where its error leaves several samples that may be the farthest, these are compared by
    distances from differences.
    """
    factors = metric.factors(features)
    error = 4 * unit_error(factors.left.shape[1], torch.float64) * factors.most
    left, right, own = (factor.numpy() for factor in factors[:3])
    exact = _Distances(features, metric)
    unpicked, bias = own.copy(), own.tolist()
    nearest, products, values = np.full_like(own, -np.inf), np.empty_like(own), np.empty_like(own)
    picks = [first]
    while len(picks) < budget:
        last = picks[-1]
        unpicked[last] = -np.inf
        np.dot(left, right[last], out=products)
        np.subtract(products, bias[last], out=products)
        np.maximum(nearest, products, out=nearest)
        np.subtract(unpicked, nearest, out=values)
        best = int(values.argmax())
        least = values[best] - error
        values[best] = -np.inf
        if values[values.argmax()] >= least:
            values[best] = np.inf
            best = exact.farthest((values >= least).nonzero()[0], picks)
        picks.append(best)
    return picks


class _Distances:
    """Distances of samples to the picks, from differences, taken when they are asked for."""

    def __init__(self, features: Tensor, metric: Metric):
        self._features, self._metric = features, metric
        self._values = np.full(len(features), np.inf)
        self._seen = np.zeros(len(features), dtype=np.int64)

    def farthest(self, samples: NDArray[np.int64], picks: list[int]) -> int:
        """Of `samples`, ascending, the one farthest from `picks`, the lowest index of equals. Of a distance of 0 nothing more is asked."""
        behind = samples[self._values[samples] > 0]
        if len(behind):
            seen = self._seen[behind]
            counts = len(picks) - seen
            starts = counts.cumsum() - counts
            turns = np.arange(counts.sum()) - np.repeat(starts - seen, counts)
            distances = self._pairs(np.repeat(behind, counts), np.array(picks)[turns])
            self._values[behind] = np.minimum(self._values[behind], np.minimum.reduceat(distances, starts))
            self._seen[behind] = len(picks)
        return int(samples[self._values[samples].argmax()])

    def _pairs(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Doubles:
        parts = []
        for block in row_blocks(len(a), 64 * self._features.shape[1]):
            one, other = (self._features[torch.from_numpy(side[block])] for side in (a, b))
            parts.append(self._metric.pairs(one, other).numpy())
        return np.concatenate(parts)
