"""The blend of QuaRC: error vector score, disagreement score and relative entropy score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.scores.acs import blend as blend_of_acs
from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores

Normalize = Literal["none", "rank", "zscore"]


@register_score(
    "quarc",
    formula="α · ‖p_Q − y‖₂ + (1 − α) · ‖p_Q − p_T‖₂ + KL(p_Q ‖ p_T)",
    direction="largest",
    needs=("targets", "teacher"),
    source="QuaRC, Tong et al., 2025 (arXiv 2507.17768)",
)
def quarc(scores: LogitScores, *, alpha: float = 0.5) -> Tensor | None:
    """`blend` of evs, ds and res as they are. ``[N]`` fp32. α falls during training: see `fastqat.selection.beta_at`."""
    return None if scores.res is None else blend(scores.evs, scores.ds, scores.res, alpha)


def blend(evs: Tensor | None, ds: Tensor | None, res: Tensor, alpha: float, normalize: Normalize = "none") -> Tensor:
    """α · evs + (1 − α) · ds + res, of a whole data set or any part of it; a term of weight 0 is left out and may be None.

    evs and ds are at most √2, res has no bound: `normalize` puts the three on one scale first, which takes the scores of all samples at
    once, such as the columns of a `ScoreTable`.

    Raises:
        InputError: α is outside [0, 1], a score that α needs is None, or `normalize` is unknown.

    Example:
        >>> import torch
        >>> evs, ds, res = torch.tensor([0.2, 1.0, 0.6]), torch.tensor([0.1, 0.3, 0.2]), torch.tensor([0.0, 9.0, 1.0])
        >>> blend(evs, ds, res, 0.5, "rank")
        tensor([0., 2., 1.])
    """
    evs, ds = (None if term is None else normalized(term, normalize) for term in (evs, ds))
    return blend_of_acs(evs, ds, alpha) + normalized(res, normalize)


def normalized(values: Tensor, how: Normalize) -> Tensor:
    """`values` ``[N]`` on a common scale.

    ``none``: as they are. ``rank``: place in ascending order over N − 1, in [0, 1]; equal values share the mean of their places.
    ``zscore``: (v − mean) / std, of equal values 0.
    """
    if how == "none":
        return values
    if how == "zscore":
        spread = values.double() - values.double().mean()
        scaled = spread / spread.square().mean().sqrt()
        return torch.where(values.max() > values.min(), scaled, 0).to(values.dtype)
    if how == "rank":
        _, place, counts = values.unique(return_inverse=True, return_counts=True)
        mean_place = counts.cumsum(0).double() - (counts + 1) / 2
        return (mean_place[place] / max(len(values) - 1, 1)).to(values.dtype)
    raise InputError(f"normalize must be one of {', '.join(get_args(Normalize))}; got {how!r}")
