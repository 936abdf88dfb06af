"""Disagreement score: how far the quantized model is from its teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores


@register_score(
    "ds",
    formula="‖p_Q − p_T‖₂",
    direction="largest",
    needs=("teacher",),
    source="disagreement score of ACS, Huang et al., TMLR 2024 (arXiv 2306.07215)",
)
def ds(scores: LogitScores) -> Tensor | None:
    """Norm of the difference of both softmaxes, in [0, √2]: the size of the distillation gradient. ``[N]`` fp32."""
    return scores.ds
