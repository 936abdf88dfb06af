"""Confidence of Dataset Cartography: the probability of the label, averaged over a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.selection.recording.dynamics import Dynamics


@register_score(
    "label_confidence",
    formula="mean over showings of p_y",
    direction="smallest",
    needs=("targets", "dynamics"),
    source="confidence of Dataset Cartography, Swayamdipta et al., EMNLP 2020 (arXiv 2009.10795)",
)
def label_confidence(dynamics: Dynamics) -> Tensor | None:
    """Mean probability of the label, in [0, 1]: low for what is hard to learn. ``[N]``. Not ``confidence``, which is max p at one time."""
    return dynamics.confidence
