"""Confidence of the prediction; the least confident samples are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores


@register_score(
    "confidence",
    formula="max p",
    direction="smallest",
    source="least confidence, Settles 2009; Coleman et al., ICLR 2020",
)
def confidence(scores: LogitScores) -> Tensor | None:
    """Largest softmax probability, in [1/C, 1]. ``[N]`` fp32."""
    return scores.confidence
