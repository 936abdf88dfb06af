"""Contextual diversity: how unlike those already chosen a prediction is."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat.selection.budget import check_count
from fastqat.selection.geometry.farthest_first import cover_radii, farthest_first
from fastqat.selection.scores.registry import WholePass, register_score


@register_score(
    "contextual_diversity",
    formula="min_{j∈S} ½ (KL(p_i ‖ p_j) + KL(p_j ‖ p_i)), S chosen farthest first",
    direction="largest",
    needs=("probabilities",),
    source="contextual diversity, Agarwal et al., ECCV 2020 (arXiv 2008.05723)",
)
def contextual_diversity(whole: WholePass, *, picks: int | None = None) -> Tensor:
    """Distance at which the farthest-first traversal of the predictions comes to a sample. ``[N]`` fp32.

    The first `picks` samples of the traversal (None: a tenth of all) get their distance to those before them, the first of all more than
    any, and the rest theirs to all `picks`. So ``topk`` of up to `picks` samples is exactly the greedy subset: where distances are equal
    in fp32 the next number below keeps the order. Per class, take the selector ``k_center`` with ``metric="symmetric_kl"`` instead: the
    traversal that is scored here knows no classes.

    Raises:
        InputError: `picks` is not in [1, N].
    """
    p = whole.probabilities
    assert p is not None, "its needs say so"
    count = max(1, round(len(p) / 10)) if picks is None else check_count("picks", picks)
    order = farthest_first(p, count, metric="symmetric_kl")
    radii = cover_radii(p, order, metric="symmetric_kl")
    return _ranked(order.cpu(), radii.cpu()).to(p.device)


def _ranked(order: Tensor, radii: Tensor) -> Tensor:
    """`radii` in fp32, such that sorting by them (descending, lowest index first) begins with `order`."""
    scores = radii.float()
    rest = torch.ones(len(radii), dtype=torch.bool)
    rest[order] = False
    zero = scores.new_zeros(())
    highest = scores[order[1]] if len(order) > 1 else scores[rest].max() if bool(rest.any()) else zero
    scores[order[0]] = torch.nextafter(highest, highest + torch.inf)
    for before, index in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        scores[index] = _below(scores[index], scores[before], index > before)
    last = int(order[-1])
    least = scores[last]
    after = torch.arange(len(radii)) > last
    below = torch.nextafter(least, least - torch.inf)
    scores[rest] = torch.minimum(scores, torch.where(after, least, below))[rest]
    return scores


def _below(score: Tensor, before: Tensor, later: bool) -> Tensor:
    """`score`, or what ranks next below `before`: the same number for a later index, else the next smaller."""
    return torch.minimum(score, before if later else torch.nextafter(before, before - torch.inf))
