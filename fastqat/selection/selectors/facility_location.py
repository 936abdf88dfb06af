"""Facility location: samples that stand for all others."""

from __future__ import annotations

from fastqat.selection.geometry.facility import MAX_BYTES, facility_location
from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "facility_location",
    rule="the greedy maximum of Σ_i max_{j∈S} s_ij",
    needs=("features",),
    source="Nemhauser, Wolsey & Fisher, Mathematical Programming 14, 1978; in DeepCore, Guo et al., DEXA 2022",
)
def pick_facility_location(
    request: Request, *, similarity: str = "euclidean", bandwidth: float | None = None, max_bytes: int = MAX_BYTES
) -> Selection:
    """Positions in the order of picking; exact, see `geometry.facility.facility_location`.

    ``similarity``: "euclidean" (a constant minus the distance), "cosine" (negative ones count as 0) or "rbf" with ``bandwidth``.
    ``max_bytes``: of the lists of pairs; less is slower. Drawing candidates (stochastic greedy) is not offered: it reads as much.
    """
    picks, _ = facility_location(request.given_features(), request.budget, similarity=similarity, bandwidth=bandwidth, max_bytes=max_bytes)
    return Selection(picks)
