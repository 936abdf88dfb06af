"""Keep the best."""

from __future__ import annotations

from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "topk",
    rule="the `budget` samples at the end that the score's direction names",
    needs=("scores",),
    order="largest",
    source="ACS, Huang et al., TMLR 2024 (arXiv 2306.07215); EL2N, Paul et al., NeurIPS 2021",
)
def topk(request: Request) -> Selection:
    """Positions of the `budget` largest utilities, largest first; among equals the lowest index first."""
    return Selection(request.ranked(descending=True)[: request.budget])
