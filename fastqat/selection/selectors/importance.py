"""Importance sampling: hard samples come more often and count for less, so that the mean loss is estimated without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.selectors.registry import Request, Selection, register_selector

# An inclusion probability above this is 1: the systematic draw takes at most one sample per interval only if rounding cannot lengthen it.
_CERTAIN = 1 - 1e-9


@register_selector(
    "importance",
    rule="`budget` samples with inclusion probability ∝ p = (1 − mix) · score / Σ + mix / N, none twice, with weights 1 / (N p)",
    needs=("scores",),
    weights="mean",
    source="Katharopoulos and Fleuret, ICML 2018 (p ∝ gradient norm); the mixture bounds the weights, Hesterberg 1995",
)
def importance(request: Request, *, mix: float = 0.1) -> Selection:
    """Exactly `budget` distinct samples, and weights with which the mean of weight · loss over them estimates the mean loss without bias.

    Sample i is included with probability π_i = budget · p_i and has weight budget / (N π_i) = 1 / (N p_i) ≤ 1 / mix. Drawing with
    replacement would give these weights too, but some samples several times: here none is, which has the same expectation and less
    variance. Where budget · p_i would exceed 1 the sample is certain (weight budget / N) and the others share what is left of the budget in
    proportion to p. The draw is systematic in random order, so that every π_i is exact.

    Args:
        mix: λ in (0, 1], the share of the uniform distribution in p; 1 draws uniformly.

    Raises:
        InputError: `mix` outside (0, 1], or a score that is negative or infinite.
    """
    if isinstance(mix, bool) or not isinstance(mix, (int, float)) or not 0 < mix <= 1:
        raise InputError(f"mix, the share of the uniform distribution, must be a number in (0, 1]; got {mix!r}")
    score = request.utilities(finite=True, least=0).double()
    total = score.sum()
    uniform = torch.full_like(score, 1 / request.size)
    inclusion = _inclusion((1 - mix) * score / total + mix * uniform if total > 0 else uniform, request.budget)
    chosen = _systematic(inclusion, request.budget, request.generator)
    chosen = chosen[inclusion[chosen].sort(descending=True, stable=True).indices]
    return Selection(chosen, request.budget / (request.size * inclusion[chosen]))


def _inclusion(p: Tensor, budget: int) -> Tensor:
    """π ∝ p with Σ π = budget and no π above 1: those that would be are certain, until none is."""
    inclusion = torch.ones_like(p)
    open_ = torch.ones(len(p), dtype=torch.bool)
    while (left := budget - int((~open_).sum())) and open_.any():
        shares = left * p / p[open_].sum()
        certain = open_ & (shares > _CERTAIN)
        if not certain.any():
            return torch.where(open_, shares, inclusion)
        open_ &= ~certain
    return inclusion.masked_fill(open_, 0.0)


def _systematic(inclusion: Tensor, budget: int, generator: torch.Generator | None) -> Tensor:
    """`budget` positions, ascending, each with its probability: the samples in random order laid end to end, one picked every unit."""
    order = torch.randperm(len(inclusion), generator=generator)
    certain = inclusion[order] == 1
    rest = order[~certain]
    wanted = budget - int(certain.sum())
    if wanted == 0:
        return order[certain].sort().values
    ends = inclusion[rest].cumsum(0)
    start = torch.rand(1, dtype=torch.float64, generator=generator)
    picked = torch.searchsorted(ends * (wanted / ends[-1]), start + torch.arange(wanted), right=True).clamp_(max=len(rest) - 1)
    return torch.cat([order[certain], rest[picked]]).sort().values
