"""CRAIG: samples whose weighted gradients add up to nearly the full gradient."""

from __future__ import annotations

from fastqat.selection.geometry.facility import MAX_BYTES, facility_location
from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "craig",
    rule="facility location with s_ij = max d − ‖g_i − g_j‖; each pick stands for the samples nearest to it",
    needs=("features",),
    weights="mean",
    source="Mirzasoleiman, Bilmes & Leskovec, ICML 2020 (arXiv 1906.01827), algorithm 1",
)
def craig(request: Request, *, max_bytes: int = MAX_BYTES) -> Selection:
    """Positions in the order of picking, weights γ_j K / N with γ_j the number of samples that j stands for.

    Features: gradients of the samples, in the last layer (``features="gradient"``) or in the logits (``"error"``); the paper selects
    class by class, as `select` does with labels. DeepCore's code counts each γ_j one too large.
    """
    picks, served_by = facility_location(request.given_features(), request.budget, max_bytes=max_bytes)
    sizes = served_by.bincount(minlength=len(picks))
    return Selection(picks, sizes.double() * len(picks) / request.size)
