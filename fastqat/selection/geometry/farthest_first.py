"""Farthest-first traversal: the exact greedy solution of the k-center problem."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.geometry.blocks import mean_row, row_blocks
from fastqat.selection.geometry.metrics import Name
from fastqat.selection.geometry.points import Points

_ACTIVE, _LEAST_ACTIVE = 1024, 64
"""How many of the farthest samples are followed pick by pick: twice the picks to go, within these; their distances take up to 4 MB."""


def farthest_first(features: Tensor, budget: int, *, metric: Name = "euclidean", first: int | None = None) -> tuple[Tensor, Tensor]:
    """Add the sample that is farthest from those already chosen, argmax_i min_{j∈S} d(i, j), until there are `budget`.

    The picks are those of the plain loop in fp64 from differences; among equal distances the lowest index comes first, and a sample
    equal to a chosen one is at distance 0. The loop reads all features for every pick. Here only the farthest samples are followed pick
    by pick, for as long as none of the others can be next, and all that was picked meanwhile is then compared with all samples in one
    matrix product. Beyond the features it needs about 100 MB and 60 bytes per sample.

    Args:
        features: floating ``[N, D]`` on any device; probabilities ``[N, C]`` for "symmetric_kl".
        budget: how many to pick, in [1, N].
        metric: "euclidean", "cosine" (1 − cos) or "symmetric_kl" (½ KL(p ‖ q) + ½ KL(q ‖ p)).
        first: the sample to begin with; None takes the one nearest to the mean.

    Returns:
        Indices int64 ``[budget]`` in the order of picking, and radii fp64 ``[N]``: of a picked sample its distance to those picked
        before it (inf for the first), of any other its distance to the picked ones. Both on the device of the features.

    Raises:
        InputError: budget or first is out of range, an unknown metric, all zeros under "cosine", negative values under "symmetric_kl".

    Source: Gonzalez, Theoretical Computer Science 38, 1985; for coresets Sener & Savarese, ICLR 2018 (arXiv 1708.00489).

    Example:
        >>> import torch
        >>> picks, radii = farthest_first(torch.tensor([[0.0], [1.0], [5.0], [2.0]]), 3, first=0)
        >>> picks.tolist(), radii.tolist()
        ([0, 2, 3], [inf, 1.0, 5.0, 2.0])
    """
    budget = _check_budget(len(features), budget)
    points = Points(features, metric)
    start = nearest_to_mean(points) if first is None else _check_first(len(features), first)
    radii = torch.full((len(features),), math.inf, dtype=torch.float64, device=features.device)
    values = radii.clone()
    picks = [start]
    pending = picks
    while len(picks) < budget:
        values[pending] = -1.0
        _compare(points, values, pending)
        pending, heights = _follow(points, values, budget - len(picks))
        radii[pending] = radii.new_tensor(heights)
        picks += pending
    values[pending] = -1.0
    _compare(points, values, pending)
    indices = torch.tensor(picks, device=features.device)
    values[indices] = radii[indices]
    return indices, points.metric.outside(values)


def _check_budget(size: int, budget: int) -> int:
    if check_count("budget", budget) > size:
        raise InputError(f"budget must be at most the number of samples, {size}; got {budget}")
    return int(budget)


def _check_first(size: int, first: int) -> int:
    if check_count("first", first, least=0) >= size:
        raise InputError(f"first must be the index of one of {size} samples; got {first}")
    return int(first)


def nearest_to_mean(points: Points) -> int:
    """The sample at the least distance from the mean of all samples, the lowest index of several."""
    mean = mean_row(points.features, points.block_bytes)[None]
    blocks = row_blocks(len(points), 32 * points.metric.width, points.block_bytes)
    return int(torch.cat([points.metric.pairs(points.features[block], mean) for block in blocks]).argmin())


def _compare(points: Points, values: Tensor, picks: list[int]) -> None:
    """Lower `values`, every sample's distance to the picked ones, by that to `picks`."""
    side = points.side(torch.tensor(picks, device=values.device))
    for block in row_blocks(len(points), 8 * (len(picks) + points.metric.width), points.block_bytes):
        values[block] = points.lower(values[block], block, side)


def _follow(points: Points, values: Tensor, most: int) -> tuple[list[int], list[float]]:
    """The next picks, at most `most`, and their distances: as many as the farthest samples decide among themselves."""
    active, rest, first_rest = _farthest(values, min(_ACTIVE, max(_LEAST_ACTIVE, 2 * most)))
    products, error = points.estimates(active, points.side(active))
    products, slack = products.T.contiguous(), error - points.own[active]
    current, indices = values[active], active.tolist()
    picks: list[int] = []
    heights: list[float] = []
    while len(picks) < most:
        best = int(current.argmax())
        height = float(current[best])
        if height < rest or (height == rest and indices[best] > first_rest):
            break
        picks.append(indices[best])
        heights.append(height)
        current[best] = -1.0
        if height > 0:
            near = (products[best] <= current + slack).nonzero().squeeze(1)
            current[near] = torch.minimum(current[near], points.exact(active[near], active[best : best + 1]))
    return picks, heights


def _farthest(values: Tensor, count: int) -> tuple[Tensor, float, int]:
    """The `count` samples of the largest values in ascending order, the lowest indices of equals; then the largest value among the
    others and the lowest index that has it.
    """
    if len(values) <= count:
        return torch.arange(len(values), device=values.device), -math.inf, 0
    least = values.topk(count).values[-1]
    above, equal = (values > least).nonzero().squeeze(1), (values == least).nonzero().squeeze(1)
    taken = count - len(above)
    active = torch.cat((above, equal[:taken])).sort().values
    if taken < len(equal):
        return active, float(least), int(equal[taken])
    others = values.clone()
    others[active] = -math.inf
    first = int(others.argmax())
    return active, float(others[first]), first
