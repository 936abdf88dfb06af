"""Exact nearest neighbours of every sample, without a matrix of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.geometry.blocks import BLOCK_BYTES, row_blocks
from fastqat.selection.geometry.metrics import Name, make_metric
from fastqat.selection.geometry.points import Points

_SPARE = 8
"""Candidates beyond k. The more, the rarer that estimates cannot tell whether one was left out."""


def nearest_neighbours(features: Tensor, k: int, *, metric: Name = "euclidean", block_bytes: int = BLOCK_BYTES) -> tuple[Tensor, Tensor]:
    """The k nearest other samples of every sample, nearest first; among equal distances the lowest index first.

    Candidates come from matrix products over blocks, their order from distances computed in fp64 from differences; a sample whose
    candidates' bounds of error leave open that a nearer one was left out is compared with all others exactly. So the result is that of
    fp64 throughout. Costs 2 N² D operations.

    Args:
        features: floating ``[N, D]`` on any device; probabilities ``[N, C]`` for "symmetric_kl".
        k: in [1, N − 1].
        metric: "euclidean", "cosine" (1 − cos) or "symmetric_kl".
        block_bytes: size of the temporaries beyond the results, about.

    Returns:
        Distances fp64 ``[N, k]`` and indices int64 ``[N, k]``, on the device of the features.

    Raises:
        InputError: k is out of range, an unknown metric, all zeros under "cosine", negative values under "symmetric_kl".

    Example:
        >>> import torch
        >>> distances, indices = nearest_neighbours(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        >>> distances.flatten().tolist(), indices.flatten().tolist()
        ([1.0, 1.0, 2.0], [1, 0, 1])
    """
    size = len(features)
    if check_count("k", k) >= size:
        raise InputError(f"k must be less than the number of samples, {size}; got {k}")
    points = Points(features, make_metric(metric, features), block_bytes)
    kept = min(k + _SPARE, size - 1)
    rows = max(1, min(1024, block_bytes // (16 * (kept + points.metric.width))))
    distances, indices = points.own.new_empty(size, k), torch.empty(size, k, dtype=torch.int64, device=features.device)
    twins: dict[int, Tensor] = {}
    for start in range(0, size, rows):
        block = slice(start, min(start + rows, size))
        distances[block], indices[block] = _block(points, block, k, kept, twins)
    return points.metric.outside(distances), indices


def _block(points: Points, block: slice, k: int, kept: int, twins: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Neighbours of the samples in `block`: inner distances ``[n, k]`` and indices; `twins`: see `_among_all`."""
    least, candidates, error = _candidates(points, block, kept)
    count = block.stop - block.start
    own = torch.arange(block.start, block.stop, device=candidates.device)
    candidates = candidates.sort(1).values
    exact = points.exact(own.repeat_interleave(kept), candidates.flatten()).reshape(count, kept)
    order = exact.sort(dim=1, stable=True).indices[:, :k]
    distances, indices = exact.gather(1, order), candidates.gather(1, order)
    if kept < len(points) - 1:
        for row in (distances[:, -1] >= least - error).nonzero().squeeze(1).tolist():
            distances[row], indices[row] = _among_all(points, block.start + row, k, twins)
    return distances, indices


def _candidates(points: Points, block: slice, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """For the samples in `block`: the `kept` others of the least estimates ``[n, kept]``, a distance that no estimate left out is below
    ``[n]``, and the bound on the estimates' error ``[n]``.
    """
    count = block.stop - block.start
    width = count + points.metric.width
    found: list[tuple[Tensor, Tensor]] = []
    error = points.own.new_zeros(count)
    for columns in row_blocks(len(points), 4 * width, points.block_bytes // 2):
        side = points.side(torch.arange(columns.start, columns.stop, device=points.own.device))
        products, bound = points.estimates(block, side)
        error = torch.maximum(error, bound)
        _leave_out_self(products, block, columns)
        best = products.topk(min(kept, products.shape[1]), largest=False)
        found.append((best.values, best.indices + columns.start))
        values, indices = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        nearest = values.topk(min(kept, values.shape[1]), largest=False)
        found = [(nearest.values, indices.gather(1, nearest.indices))]
    values, indices = found[0]
    return values.amax(1).double() + points.own[block], indices, error


def _leave_out_self(products: Tensor, rows: slice, columns: slice) -> None:
    """Set the distance of each sample to itself to infinity."""
    start, stop = max(rows.start, columns.start), min(rows.stop, columns.stop)
    if start < stop:
        same = torch.arange(start, stop, device=products.device)
        products[same - rows.start, same - columns.start] = torch.inf


def _among_all(points: Points, sample: int, k: int, twins: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Neighbours of one sample by its exact distances to all.

    The k nearest of one that has more than k equals are the first of these: `twins` remembers for each of them who they are, so that all
    together cost one look at all samples.
    """
    if sample in twins:
        first = twins[sample]
        return points.own.new_zeros(k), first[first != sample][:k]
    everyone = torch.arange(len(points), device=points.own.device)
    distances = points.exact(everyone, everyone[sample : sample + 1])
    equal = (distances == 0).nonzero().squeeze(1)
    if len(equal) > k and bool((points.features[equal] == points.features[sample]).all()):
        twins.update(dict.fromkeys(equal.tolist(), equal[: k + 1]))
    distances[sample] = torch.inf
    best = distances.sort(stable=True)
    return best.values[:k], best.indices[:k]
