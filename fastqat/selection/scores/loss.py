"""Cross-entropy with the label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores


@register_score(
    "loss",
    formula="−log p_y",
    direction="largest",
    needs=("targets",),
    source="selection by loss, e.g. Jiang et al. 2019 (Selective-Backprop)",
)
def loss(scores: LogitScores) -> Tensor | None:
    """Cross-entropy per sample in nats, ≥ 0. ``[N]`` fp32."""
    return scores.loss
