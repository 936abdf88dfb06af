"""Forgetting events: how often a training lost a sample that it had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.selection.recording.dynamics import Dynamics


@register_score(
    "forgetting",
    formula="#{t: right at t − 1, wrong at t}; never right: the number of showings",
    direction="largest",
    needs=("targets", "dynamics"),
    source="forgetting events, Toneva et al., ICLR 2019 (arXiv 1812.05159)",
)
def forgetting(dynamics: Dynamics) -> Tensor | None:
    """Showings at which a sample turned from right to wrong; a sample that was never right has the most. ``[N]``."""
    return None if dynamics.training is None else dynamics.training.losses_or_most()
