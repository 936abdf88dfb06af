"""Coverage-centric selection: every range of the score is represented, the hardest samples left out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.selectors.registry import Request, Selection, register_selector
from fastqat.selection.strata import draw_from_strata


@register_selector(
    "stratified",
    rule="without the hardest `beta` of the samples: the budget spread evenly over `strata` ranges of the score, at random inside each",
    needs=("scores",),
    source="CCS, Zheng et al., ICLR 2023 (algorithm 1)",
)
def stratified(request: Request, *, strata: int = 50, beta: float = 0.0) -> Selection:
    """Draw from `strata` equally wide ranges of the score, from each the same number as far as it has as many.

    The ⌊beta · size⌋ samples of the largest utility are dropped first: those that `topk` would keep; among equals the highest index. With
    scores such as evs, loss, forgetting or margin they are the hardest, as the paper wants; with ``moderate``, the distance to a class's
    median one, they are the most typical ones.

    The range of what remains is cut into `strata` bins of equal width. From the smallest bin to the largest,
    each gets ⌊budget left / bins left⌋ or all that it has, whichever is less, so that what small bins cannot give goes to larger ones.

    Args:
        strata: number of bins, ≥ 1; empty ones are passed over.
        beta: share of the hardest samples to drop, in [0, 1 − fraction]; the paper tunes it: 0 to 0.5, more the smaller the fraction.

    Raises:
        InputError: `beta` outside this range, `strata` below 1, or a score that is infinite.
    """
    check_count("strata", strata)
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta <= 1:
        raise InputError(f"beta, the share of the hardest samples to drop, must be a number in [0, 1]; got {beta!r}")
    dropped = math.floor(beta * request.size)
    if request.size - dropped < request.budget:
        left, kept = (request.size - dropped) / request.size, request.budget / request.size
        raise InputError(f"beta {beta} leaves {left:.1%} of the samples, but {kept:.1%} are to be kept; lower it")
    utility = request.utilities(finite=True)
    remaining = request.ranked(descending=False)[: request.size - dropped].sort().values
    bins = _bins(utility[remaining].double(), strata)
    counts = _spread(request.budget, torch.bincount(bins, minlength=strata).tolist())
    return Selection(remaining[draw_from_strata(bins, torch.tensor(counts), request.generator)])


def _bins(values: Tensor, strata: int) -> Tensor:
    """Which of `strata` equally wide bins between the least and the largest value each is in; the largest is in the last."""
    least, width = values.min(), (values.max() - values.min()) / strata
    return ((values - least) / width).floor().long().clamp_(0, strata - 1) if width > 0 else torch.zeros(len(values), dtype=torch.long)


def _spread(budget: int, sizes: list[int]) -> list[int]:
    """How many to take of each bin."""
    counts = [0] * len(sizes)
    for left, which in enumerate(sorted(range(len(sizes)), key=lambda b: sizes[b])):
        counts[which] = min(sizes[which], budget // (len(sizes) - left))
        budget -= counts[which]
    return counts
