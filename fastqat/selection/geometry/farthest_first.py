"""Farthest-first traversal: the exact greedy solution of the k-center problem."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.geometry.blocks import mean_row, row_blocks
from fastqat.selection.geometry.metrics import Metric, Name, make_metric
from fastqat.selection.geometry.passes import farthest_by_passes, few_enough
from fastqat.selection.geometry.points import Points

_ACTIVE, _LEAST_ACTIVE = 1024, 64
"""How many of the farthest samples are followed pick by pick: twice the picks to go, within these; their distances take up to 4 MB."""


def farthest_first(features: Tensor, budget: int, *, metric: Name = "euclidean", first: int | None = None) -> Tensor:
    """Add the sample that is farthest from those already chosen, argmax_i min_{j∈S} d(i, j), until there are `budget`.

    The picks are those of the plain loop in fp64 from differences; among equal distances the lowest index comes first, and a sample
    equal to a chosen one is at distance 0. The loop reads all features for every pick. Here only the farthest samples are followed pick
    by pick, for as long as none of the others can be next, and all that was picked meanwhile is then compared with all samples in one
    matrix product. Beyond the features it needs about 100 MB and 60 bytes per sample. Only on features that fit a CPU's cache the loop is
    faster, and is what runs, with matrix-vector products.

    Args:
        features: floating ``[N, D]`` on any device; probabilities ``[N, C]`` for "symmetric_kl".
        budget: how many to pick, in [1, N].
        metric: "euclidean", "cosine" (1 − cos) or "symmetric_kl" (½ KL(p ‖ q) + ½ KL(q ‖ p)).
        first: the sample to begin with; None takes the one nearest to the mean.

    Returns:
        Indices int64 ``[budget]`` in the order of picking, on the device of the features. `cover_radii` has their distances.

    Raises:
        InputError: budget or first is out of range, an unknown metric, all zeros under "cosine", negative values under "symmetric_kl".

    Source: Gonzalez, Theoretical Computer Science 38, 1985; for coresets Sener & Savarese, ICLR 2018 (arXiv 1708.00489).

    Example:
        >>> import torch
        >>> farthest_first(torch.tensor([[0.0], [1.0], [5.0], [2.0]]), 3, first=0).tolist()
        [0, 2, 3]
    """
    budget, metric_of = _check_budget(len(features), budget), make_metric(metric, features)
    start = nearest_to_mean(features, metric_of) if first is None else _check_first(len(features), first)
    if few_enough(features, metric_of.width):
        picks = farthest_by_passes(features, metric_of, budget, start)
    else:
        picks = _among_farthest(Points(features, metric_of), budget, start)
    return torch.tensor(picks, device=features.device)


def cover_radii(features: Tensor, picks: Tensor, *, metric: Name = "euclidean") -> Tensor:
    """Of every sample the distance to the nearest of `picks`; of a picked one to those picked before it, inf for the first.

    Args:
        features, metric: see `farthest_first`.
        picks: its result, int64 ``[K]``.

    Returns:
        fp64 ``[N]`` on the device of the features.

    Raises:
        InputError: see `farthest_first`.

    Example:
        >>> import torch
        >>> cover_radii(torch.tensor([[0.0], [1.0], [5.0], [2.0]]), torch.tensor([0, 2, 3])).tolist()
        [inf, 1.0, 5.0, 2.0]
    """
    points = Points(features, make_metric(metric, features))
    values = torch.full((len(features),), math.inf, dtype=torch.float64, device=features.device)
    turns = picks.new_full((len(features),), len(picks))
    turns[picks] = torch.arange(len(picks), device=picks.device)
    values[picks[0]] = -1.0
    _compare(points, values, picks, turns)
    values[picks[0]] = math.inf
    return points.metric.outside(values)


def _check_budget(size: int, budget: int) -> int:
    if check_count("budget", budget) > size:
        raise InputError(f"budget must be at most the number of samples, {size}; got {budget}")
    return int(budget)


def _check_first(size: int, first: int) -> int:
    if check_count("first", first, least=0) >= size:
        raise InputError(f"first must be the index of one of {size} samples; got {first}")
    return int(first)


def nearest_to_mean(features: Tensor, metric: Metric) -> int:
    """The sample at the least distance from the mean of all samples, the lowest index of several."""
    mean = mean_row(features)[None]
    blocks = row_blocks(len(features), 32 * metric.width)
    return int(torch.cat([metric.pairs(features[block], mean) for block in blocks]).argmin())


def _among_farthest(points: Points, budget: int, start: int) -> list[int]:
    """The picks, each from the farthest samples at the last comparison of all."""
    values = torch.full((len(points),), math.inf, dtype=torch.float64, device=points.own.device)
    picks = [start]
    pending = picks
    while len(picks) < budget:
        values[pending] = -1.0
        _compare(points, values, torch.tensor(pending, device=values.device))
        pending = _follow(points, values, budget - len(picks))
        picks += pending
    return picks


def _compare(points: Points, values: Tensor, picks: Tensor, turns: Tensor | None = None) -> None:
    """Lower `values`, every sample's distance to the picked ones, by that to `picks`; to the first `turns` ``[N]`` of these if given."""
    side = points.side(picks)
    for block in row_blocks(len(points), 8 * (len(picks) + points.metric.width), points.block_bytes):
        values[block] = points.lower(values[block], block, side, None if turns is None else turns[block])


def _follow(points: Points, values: Tensor, most: int) -> list[int]:
    """The next picks, at most `most`: as many as the farthest samples decide among themselves."""
    active, rest, first_rest = _farthest(values, min(_ACTIVE, max(_LEAST_ACTIVE, 2 * most)))
    products, error = points.estimates(active, points.side(active))
    products, slack = products.T.contiguous(), error - points.own[active]
    current, indices = values[active], active.tolist()
    picks: list[int] = []
    while len(picks) < most:
        best = int(current.argmax())
        height = float(current[best])
        if height < rest or (height == rest and indices[best] > first_rest):
            break
        picks.append(indices[best])
        current[best] = -1.0
        if height > 0:
            near = (products[best] <= current + slack).nonzero().squeeze(1)
            current[near] = torch.minimum(current[near], points.exact(active[near], active[best : best + 1]))
    return picks


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
