"""What a `DynamicsRecorder` saw of a training, as the scores of stage "dynamics" receive it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Transitions(NamedTuple):
    """How one model went on with each sample, int64 ``[N]`` each.

    ``seen`` how often it was shown; ``right`` how often it was classified rightly; ``lost`` how often it was right when shown before and
    wrong now.
    """

    seen: Tensor
    right: Tensor
    lost: Tensor

    def losses_or_most(self) -> Tensor:
        """`lost`; for a sample that was never right the number of showings, which no count of losses reaches. fp64 ``[N]``."""
        return torch.where(self.right > 0, self.lost, self.seen.max()).double()


class Dynamics(NamedTuple):
    """One training, sample by sample, on the CPU.

    ``training`` the transitions of the model in training, and over all its showings of a sample: ``margin`` the mean of
    z_y − max_{j≠y} z_j on raw logits, ``evs`` and ``loss`` the means of these scores, ``confidence`` and ``variability`` mean and standard
    deviation of p_y; fp64 ``[N]``. All of them None when only copies at other bit-widths were recorded. ``bits``: bit-width → the
    transitions of the copy at that width.
    """

    training: Transitions | None
    margin: Tensor | None
    evs: Tensor | None
    loss: Tensor | None
    confidence: Tensor | None
    variability: Tensor | None
    bits: Mapping[int, Transitions]
