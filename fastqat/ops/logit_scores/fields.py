"""What `fastqat.logit_scores` gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LogitScores(NamedTuple):
    """One ``[N]`` tensor per score, None where the input that it needs was not given; see `logit_scores`."""

    loss: Tensor | None = None
    evs: Tensor | None = None
    correct: Tensor | None = None
    entropy: Tensor | None = None
    confidence: Tensor | None = None
    margin: Tensor | None = None
    ds: Tensor | None = None
    res: Tensor | None = None
    kd: Tensor | None = None
