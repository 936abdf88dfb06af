"""k-center greedy: cover the data set with balls."""

from __future__ import annotations

from typing import Literal

import torch

from fastqat._errors import InputError
from fastqat.selection.geometry.farthest_first import farthest_first
from fastqat.selection.geometry.metrics import Name
from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "k_center",
    rule="add argmax_i min_{j∈S} d(i, j)",
    needs=("features",),
    source="Sener & Savarese, ICLR 2018 (arXiv 1708.00489); contextual diversity, Agarwal et al., ECCV 2020, is metric='symmetric_kl'",
)
def k_center(request: Request, *, metric: Name = "euclidean", first: int | Literal["mean", "random"] = "mean") -> Selection:
    """Positions in the order of picking; exact, see `farthest_first`.

    ``metric``: "euclidean", "cosine", or "symmetric_kl" with probabilities as features: contextual diversity. ``first``: begin with the
    sample nearest to the mean, with a draw from ``generator=``, or with that position within the group: with balance within
    each class, so that it must be less than the smallest class has samples.
    """
    return Selection(farthest_first(request.given_features(), request.budget, metric=metric, first=_first(request, first)))


def _first(request: Request, first: int | str) -> int | None:
    if first == "random":
        return int(torch.randint(request.size, (), generator=request.generator))
    if first == "mean":
        return None
    if isinstance(first, str):
        raise InputError(f"first must be 'mean', 'random' or a position; got {first!r}")
    return first
