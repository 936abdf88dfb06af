"""Draws from strata: so many samples of each part, whatever made the parts."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_from_strata(stratum: Tensor, counts: Tensor, generator: torch.Generator | None) -> Tensor:
    """Positions of ``counts[s]`` samples of each stratum s, drawn uniformly and none twice, in random order.

    Args:
        stratum: int64 ``[N]``, which stratum each sample is in, counted from 0.
        counts: int64 ``[S]``, at most the number of samples of each stratum.
        generator: of the one permutation that decides the draw; None: torch's global one.
    """
    shuffled = torch.randperm(len(stratum), generator=generator)
    by_stratum = stratum[shuffled].argsort(stable=True)
    ordered = stratum[shuffled][by_stratum]
    starts = torch.bincount(stratum, minlength=len(counts)).cumsum(0).roll(1)
    starts[0] = 0
    rank = torch.arange(len(stratum)) - starts[ordered]
    return shuffled[by_stratum[rank < counts[ordered]].sort().values]
