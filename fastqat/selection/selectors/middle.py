"""Keep the middle: neither the hardest samples nor the easiest."""

from __future__ import annotations

import torch

from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "middle",
    rule="the `budget` samples in the middle of the ranking, those nearest to the median rank first",
    needs=("scores",),
    source="Moderate coreset, Xia et al., ICLR 2023 (with the distance to the class median as the score, per class)",
)
def middle(request: Request) -> Selection:
    """Of the ranking by score, the ``⌊(size − budget) / 2⌋`` lowest and as many highest (one more where that is odd) are left out.

    Only ranks matter, so that a long tail of large distances does not move the middle. Among equals the lowest index is kept.
    """
    easiest = (request.size - request.budget) // 2
    kept = request.ranked(descending=True)[: request.size - easiest].sort().values
    utility = request.utilities()
    ascending = kept[utility[kept].sort(stable=True).indices[: request.budget]]
    from_middle = (2 * torch.arange(request.budget) - (request.budget - 1)).abs()
    return Selection(ascending[from_middle.argsort(stable=True)])
