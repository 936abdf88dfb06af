"""Error vector score: how far the prediction is from the label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores


@register_score(
    "evs",
    formula="‖p − y‖₂",
    direction="largest",
    needs=("targets",),
    aliases=("el2n",),
    source="error vector score of ACS, Huang et al., TMLR 2024 (arXiv 2306.07215); EL2N, Paul et al., NeurIPS 2021",
)
def evs(scores: LogitScores) -> Tensor | None:
    """Norm of softmax minus one-hot label, in [0, √2]: the size of the loss gradient at the logits. ``[N]`` fp32."""
    return scores.evs
