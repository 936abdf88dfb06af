"""Entropy of the prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores


@register_score(
    "entropy",
    formula="−Σ p log p",
    direction="largest",
    source="uncertainty sampling, Settles 2009; Coleman et al., ICLR 2020",
)
def entropy(scores: LogitScores) -> Tensor | None:
    """Entropy of the softmax in nats, in [0, log C]. ``[N]`` fp32."""
    return scores.entropy
