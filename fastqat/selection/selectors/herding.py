"""Herding: a subset with the mean of the data set."""

from __future__ import annotations

from fastqat.selection.geometry.herding import herd
from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "herding",
    rule="add argmin_i ‖(t + 1) μ − Σ_S h − h_i‖, t = |S|",
    needs=("features",),
    source="Welling, ICML 2009; Chen, Welling & Smola, UAI 2010 (arXiv 1203.3472)",
)
def herding(request: Request) -> Selection:
    """Positions in the order of picking; exact, see `herd`. DeepCore's code takes the argmax, which drives the mean away."""
    return Selection(herd(request.given_features(), request.budget))
