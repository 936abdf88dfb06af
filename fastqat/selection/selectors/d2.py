"""D² pruning: difficulty and diversity by messages over the graph of nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.geometry.metrics import Name
from fastqat.selection.geometry.nearest import nearest_neighbours
from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "d2",
    rule="u_i += Σ_j exp(−γ_f d_ij) u_j over the k nearest; then pick argmax u, and for its neighbours u_j −= exp(−γ_r d_ij) u_i",
    needs=("scores", "features"),
    source="D2 pruning, Maharana et al., ICLR 2024 (arXiv 2310.07931)",
)
def d2(
    request: Request, *, k: int = 10, gamma_f: float = 1.0, gamma_r: float = 1.0, iterations: int = 1, metric: Name = "euclidean"
) -> Selection:
    """Positions in the order of picking; among equals the lowest index first.

    u is the score turned so that larger is better, and raised by its minimum where that is negative: a message says how much there is.
    The kernel takes the distance itself, as the released code does; γ is in its reciprocal units, so that features of large distances
    need a small γ, or ``metric="cosine"``. A pick of which nothing is left sends no message.

    Args:
        request: with scores and features.
        k: neighbours of each sample; all others where there are not more.
        gamma_f: kernel of the forward messages, ≥ 0.
        gamma_r: kernel of the reverse messages, ≥ 0; inf sends none, and what is left is a ranking by u.
        iterations: rounds of forward messages; 0 keeps the scores.
        metric: of the graph, see `nearest_neighbours`.

    Raises:
        InputError: an option is out of range, or a score is infinite.
    """
    features = request.given_features()
    for name, value in (("gamma_f", gamma_f), ("gamma_r", gamma_r)):
        if not isinstance(value, (int, float)) or not value >= 0:
            raise InputError(f"{name} must be a number ≥ 0; got {value!r}")
    check_count("iterations", iterations, least=0)
    if request.size == 1:
        return Selection(torch.zeros(1, dtype=torch.int64))
    distances, neighbours = nearest_neighbours(features, min(check_count("k", k), request.size - 1), metric=metric)
    distances, neighbours = distances.cpu(), neighbours.cpu()
    values = request.utilities(finite=True).double()
    values = values - values.min().clamp_max(0.0)
    for _ in range(iterations):
        values = _forward(values, _kernel(gamma_f, distances), neighbours)
    return Selection(_greedy(values, _kernel(gamma_r, distances), neighbours, request.budget))


def _forward(values: Tensor, weights: Tensor, neighbours: Tensor) -> Tensor:
    """Each value plus its neighbours' weighted ones, nearest first: in this order two equal samples get the same bits."""
    raised = values.clone()
    for weight, neighbour in zip(weights.T, neighbours.T, strict=True):
        raised += weight * values[neighbour]
    return raised


def _kernel(gamma: float, distances: Tensor) -> Tensor:
    """exp(−γ d), also for γ = inf, where samples at distance 0 still hear of each other."""
    return torch.exp(-(distances * gamma).nan_to_num(nan=0.0, posinf=torch.inf))


def _greedy(values: Tensor, weights: Tensor, neighbours: Tensor, budget: int) -> Tensor:
    """The `budget` picks, each of the largest value that the messages of those before it have left."""
    values = values.clone()
    picks = torch.empty(budget, dtype=torch.int64)
    for turn in range(budget):
        best = int(values.argmax())
        picks[turn] = best
        values[neighbours[best]] -= weights[best] * values[best].clamp_min(0.0)
        values[best] = -torch.inf
    return picks
