"""A draw in which a sample's chance grows with its score."""

from __future__ import annotations

import torch

from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "proportional",
    rule="`budget` samples drawn one after the other, each with probability score / Σ of the scores that are left, none twice",
    needs=("scores",),
    source="QCore, Campos et al., PVLDB 17(11) 2024: its released code, with quantization misses as the score",
)
def proportional(request: Request) -> Selection:
    """P(i) ∝ score, without replacement, in the order of the draw.

    One exponential number e_i per sample decides: the smallest e_i / score_i win, which has the distribution of successive draws
    (Efraimidis and Spirakis, 2006). Samples of score 0 are drawn uniformly once no others are left.

    Raises:
        InputError: a score is negative or infinite.
    """
    score = request.utilities(finite=True, least=0).double()
    race = torch.empty(request.size, dtype=torch.float64).exponential_(generator=request.generator)
    random_order = race.argsort()
    finish = torch.where(score > 0, race / score, torch.inf)
    return Selection(random_order[finish[random_order].sort(stable=True).indices[: request.budget]])
