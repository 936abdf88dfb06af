"""Keep the other end: the control experiment of `topk`."""

from __future__ import annotations

from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "bottomk",
    rule="the `budget` samples at the end opposite to the score's direction",
    needs=("scores",),
    order="smallest",
    source="Sorscher et al., NeurIPS 2022: easy samples are the ones to keep when data is scarce",
)
def bottomk(request: Request) -> Selection:
    """Positions of the `budget` smallest utilities, smallest first; among equals the lowest index first."""
    return Selection(request.ranked(descending=False)[: request.budget])
