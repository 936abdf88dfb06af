"""Herding: picks whose running mean stays close to the mean of all samples."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.geometry.blocks import mean_row, row_blocks, unit_error
from fastqat.selection.geometry.passes import few_enough
from fastqat.selection.geometry.screens import make_screen


def herd(features: Tensor, budget: int) -> Tensor:
    """Add argmin_i ‖(t + 1) μ − Σ_S h − h_i‖ over the samples not yet chosen, t = |S|, until there are `budget`.

    The picks are those of the plain loop in fp64; among equal distances the lowest index comes first. The loop reads all features for
    every pick. If they do not fit a cache, on a CPU an 8-bit copy is read instead, whose error has a bound, and the distances of the few
    samples that it leaves open are taken from the features themselves. Beyond these it needs a byte per feature, 20 bytes per sample and
    the blocks of one pass; for few features a copy in fp64.

    Args:
        features: floating ``[N, D]`` on any device.
        budget: how many to pick, in [1, N].

    Returns:
        Indices int64 ``[budget]`` in the order of picking, on the device of the features.

    Raises:
        InputError: budget is out of range.

    Source: Welling, ICML 2009; Chen, Welling & Smola, UAI 2010 (arXiv 1203.3472). Here with samples of any norm and none picked twice.

    Example:
        >>> import torch
        >>> herd(torch.tensor([[0.0], [1.0], [2.0], [5.0]]), 3).tolist()
        [2, 1, 3]
    """
    if check_count("budget", budget) > len(features):
        raise InputError(f"budget must be at most the number of samples, {len(features)}; got {budget}")
    by = _by_passes if few_enough(features, features.shape[1]) else _by_screen
    return torch.tensor(by(features, budget), device=features.device)


def _by_screen(features: Tensor, budget: int) -> list[int]:
    """The picks, from a screen's estimates and the distances of those that it leaves open."""
    mean = mean_row(features)
    screen, twins = make_screen(features, mean), _Twins(features)
    wanted = mean.clone()
    picks: list[int] = []
    for _ in range(budget):
        nearest = _nearest(features, screen.nearest(wanted - mean), wanted)
        best = int(nearest[0])
        picks.append(best)
        twins.take(screen.half, best, nearest)
        wanted += mean - features[best].double()
    return picks


def _by_passes(features: Tensor, budget: int) -> list[int]:
    """The picks, from a matrix-vector product in fp64 for each and the distances of those that its error leaves open."""
    rows, mean = features.double().contiguous().numpy(), mean_row(features).numpy()
    norms = torch.from_numpy(rows).norm(dim=1).numpy()
    half, longest, unit = norms**2 / 2, float(norms.max()), 4 * unit_error(len(mean), torch.float64)
    twins, wanted, estimates = _Twins(features), mean.copy(), np.empty_like(half)
    picks: list[int] = []
    for _ in range(budget):
        np.dot(rows, wanted, out=estimates)
        np.subtract(half, estimates, out=estimates)
        best = int(estimates.argmin())
        least, estimates[best] = estimates[best], np.inf
        reach = least + unit * longest * (longest + float(np.sqrt(wanted @ wanted)))
        if estimates[estimates.argmin()] <= reach:
            estimates[best] = least
            nearest = _nearest(features, torch.from_numpy((estimates <= reach).nonzero()[0]), torch.from_numpy(wanted))
            best = int(nearest[0])
            twins.take(half, best, nearest)
        else:
            twins.take(half, best)
        picks.append(best)
        wanted += mean - rows[best]
    return picks


def _nearest(features: Tensor, rows: Tensor, wanted: Tensor) -> Tensor:
    """Of the samples `rows`, ascending, those of the least ‖wanted − h_i‖², in fp64 from differences."""
    if len(rows) == 1:
        return rows
    blocks = row_blocks(len(rows), 16 * features.shape[1])
    distances = torch.cat([features[rows[block]].double().sub_(wanted).square_().sum(1) for block in blocks])
    return rows[distances == distances.min()]


class _Twins:
    """Equal samples, of which only the first that is left takes part: they would all be left open by every estimate."""

    def __init__(self, features: Tensor):
        self._features = features
        self._waiting: dict[int, list[int]] = {}

    def take(self, half: Tensor | NDArray[np.float64], best: int, nearest: Tensor | None = None) -> None:
        """Sample `best` was picked: `half` becomes inf for it and for those of `nearest` that equal it, but the first of these."""
        value, half[best] = float(half[best]), np.inf
        waiting = self._waiting.pop(best, [])
        if nearest is not None and len(nearest) > 1 and not waiting:
            equal = (self._features[nearest] == self._features[best]).all(1)
            waiting = nearest[equal].tolist()[:0:-1]
            half[waiting] = np.inf
        if waiting:
            heir = waiting.pop()
            half[heir] = value
            self._waiting[heir] = waiting
