"""The blend of ACS: error vector score and disagreement score, weighted by the schedule's β."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores


@register_score(
    "acs",
    formula="β · ‖p_Q − y‖₂ + (1 − β) · ‖p_Q − p_T‖₂",
    direction="largest",
    needs=("targets", "teacher"),
    source="ACS, Huang et al., TMLR 2024 (arXiv 2306.07215)",
)
def acs(scores: LogitScores, *, beta: float = 0.5) -> Tensor:
    """`blend` of evs and ds. ``[N]`` fp32."""
    return blend(scores.evs, scores.ds, beta)


def blend(evs: Tensor | None, ds: Tensor | None, beta: float) -> Tensor:
    """β · evs + (1 − β) · ds; a term of weight 0 is left out, so that its score need not exist.

    Raises:
        InputError: β is outside [0, 1], or a score that β needs is None.
    """
    if not 0 <= beta <= 1:
        raise InputError(f"beta must be in [0, 1]; got {beta}")
    terms = [(weight, score) for weight, score in ((beta, evs), (1 - beta, ds)) if weight > 0]
    if any(score is None for _, score in terms):
        raise InputError(f"beta {beta} blends evs and ds; one of them is missing")
    weighted = [weight * score for weight, score in terms if score is not None]
    return weighted[0] if len(weighted) == 1 else weighted[0] + weighted[1]
