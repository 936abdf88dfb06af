"""Margin between the two likeliest classes; the closest calls are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores


@register_score(
    "margin",
    formula="p₍₁₎ − p₍₂₎",
    direction="smallest",
    source="margin sampling, Settles 2009; Coleman et al., ICLR 2020",
)
def margin(scores: LogitScores) -> Tensor | None:
    """Largest minus second largest softmax probability, in [0, 1]. ``[N]`` fp32."""
    return scores.margin
