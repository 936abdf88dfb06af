"""Variability of Dataset Cartography: how much the probability of the label moved in a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.selection.recording.dynamics import Dynamics


@register_score(
    "variability",
    formula="√(mean over showings of (p_y − mean p_y)²)",
    direction="largest",
    needs=("targets", "dynamics"),
    source="variability of Dataset Cartography, Swayamdipta et al., EMNLP 2020 (arXiv 2009.10795)",
)
def variability(dynamics: Dynamics) -> Tensor | None:
    """Standard deviation of the label's probability, in [0, ½]: high for samples that are ambiguous. ``[N]``."""
    return dynamics.variability
