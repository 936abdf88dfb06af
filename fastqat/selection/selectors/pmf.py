"""A small copy of the distribution of the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat.selection.selectors.registry import Request, Selection, register_selector
from fastqat.selection.strata import draw_from_strata


@register_selector(
    "pmf",
    rule="of the n_k samples with score k, `budget` · n_k / N by largest remainder, at random inside each",
    needs=("scores",),
    source="QCore, Campos et al., PVLDB 17(11) 2024: the subset follows the distribution of quantization misses",
)
def pmf(request: Request) -> Selection:
    """As many of each distinct score as its share of all samples asks for, exactly `budget` in total, in random order.

    The shares are rounded down and what is then missing goes to the largest remainders, equal ones in random order. So scores that take a
    few values (misses, forgetting events) are represented as they are, and scores that all differ give a uniform draw.
    """
    _, value, sizes = request.utilities().unique(return_inverse=True, return_counts=True)
    return Selection(draw_from_strata(value, _shares(sizes, request.budget, request.generator), request.generator))


def _shares(sizes: Tensor, budget: int, generator: torch.Generator | None) -> Tensor:
    """`budget` in proportion to `sizes`, int64, by largest remainder; whole numbers throughout."""
    total = int(sizes.sum())
    counts, remainders = budget * sizes // total, budget * sizes % total
    random_order = torch.randperm(len(sizes), generator=generator)
    largest = random_order[remainders[random_order].sort(descending=True, stable=True).indices]
    counts[largest[: budget - int(counts.sum())]] += 1
    return counts
