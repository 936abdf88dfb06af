"""Unbiased dynamic pruning: drop at random among the samples that are learned well, and let those that stay count for more."""

from __future__ import annotations

import warnings

import torch

from fastqat.selection.selectors.registry import Request, Selection, register_selector

_TOO_FEW = (
    "infobatch is to keep fewer than have a score of at least the mean (of a class, when balanced), so it draws uniformly from all: "
    "use a larger fraction, or another selector"
)


@register_selector(
    "infobatch",
    rule="every sample with a score of at least the mean, and of the others as many at random as `budget` leaves, with weight 1 / (1 − r)",
    needs=("scores",),
    order="largest",
    weights="sum",
    source="InfoBatch, Qin et al., ICLR 2024",
)
def infobatch(request: Request) -> Selection:
    """Exactly `budget` samples, and weights with which the sum of weight · loss over them estimates the sum of the loss over all.

    Of the n_low samples whose score lies below the mean, k = budget − n_high are drawn: each is kept with probability 1 − r = k / n_low and
    gets the weight n_low / k; the n_high others have weight 1. The paper fixes r = ½ and lets the number of samples follow; here the number
    is fixed, as for every selector, and r follows. As in the paper the weights preserve the sum, not the mean: an epoch of fewer steps
    moves the weights of the model as far as one over all samples.

    Where the n_high samples and one of the others do not fit into `budget` (at a small fraction, or where many scores are equal), the
    samples are drawn uniformly from all, with weight size / `budget`: the sum is still estimated without bias, but nothing is left of the
    rule, and a warning says so. Fractions above ½ are what the method is made for.

    Raises:
        InputError: a score is infinite.
    """
    utility = request.utilities(finite=True)
    low = utility.double() < utility.double().mean()
    count, high = int(low.sum()), request.size - int(low.sum())
    kept = request.budget - high
    if kept < min(count, 1):
        warnings.warn(_TOO_FEW, stacklevel=2)
        low, count, kept = torch.ones_like(low), request.size, request.budget
    weights = torch.ones(request.size)
    if kept:
        weights[low] = count / kept
    members = low.nonzero().flatten()
    drawn = members[torch.randperm(count, generator=request.generator)[:kept]]
    chosen = torch.cat([(~low).nonzero().flatten(), drawn]).sort().values
    chosen = chosen[utility[chosen].sort(descending=True, stable=True).indices]
    return Selection(chosen, weights[chosen])
