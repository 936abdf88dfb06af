"""Relative entropy score of QuaRC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores


@register_score(
    "res",
    formula="KL(p_Q ‖ p_T) = Σ p_Q log(p_Q / p_T)",
    direction="largest",
    needs=("teacher",),
    source="QuaRC, Tong et al., 2025 (arXiv 2507.17768)",
)
def res(scores: LogitScores) -> Tensor | None:
    """Divergence of the quantized model's softmax from the teacher's, ≥ 0, in nats. ``[N]`` fp32."""
    return scores.res
