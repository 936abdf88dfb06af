"""Graph cut: samples that are like all others and unlike each other."""

from __future__ import annotations

from typing import Literal

from fastqat.selection.geometry.graph_cut import graph_cut
from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "graph_cut",
    rule="the greedy maximum of Σ_{i∈V, j∈S} s_ij − λ Σ_{i,j∈S} s_ij",
    needs=("features",),
    source="Iyer et al., ALT 2021 (arXiv 2006.15412); in DeepCore, Guo et al., DEXA 2022",
)
def pick_graph_cut(request: Request, *, redundancy: float = 1.0, similarity: Literal["cosine", "dot"] = "cosine") -> Selection:
    """Positions in the order of picking; exact, see `geometry.graph_cut.graph_cut`. ``redundancy``: λ, what likeness among picks costs."""
    return Selection(graph_cut(request.given_features(), request.budget, redundancy=redundancy, similarity=similarity))
