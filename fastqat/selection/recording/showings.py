"""One batch of a training as a `DynamicsRecorder` sees it: what the logits say, and the running counts that it is added to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.ops.logit_scores.api import logit_scores

PACKED = 9
"""Columns of a packed showing: step, bits, and the fields of `Showings`."""


class Showings(NamedTuple):
    """A batch of samples shown to a model, one value each ``[B]``.

    ``sample`` its index in the data set; ``target`` its label; ``other`` the likeliest class but the label; ``correct`` whether the label
    is the likeliest of all; ``margin`` z_label − z_other; ``evs`` and ``loss`` as of `fastqat.logit_scores`.
    """

    sample: Tensor
    target: Tensor
    other: Tensor
    correct: Tensor
    margin: Tensor
    evs: Tensor
    loss: Tensor

    def to(self, device: torch.device) -> Showings:
        """The same on `device`."""
        return Showings(*(values.to(device, non_blocking=True) for values in self))

    def packed(self, step: int, bits: int) -> Tensor:
        """fp64 ``[B, 9]``, which holds every field exactly."""
        columns = (torch.full_like(self.sample, step), torch.full_like(self.sample, bits), *self)
        return torch.stack([column.double() for column in columns], dim=1)


def unpacked(rows: Tensor) -> Iterator[tuple[int, Showings]]:
    """Bits and showings of every step, in the order of the steps; within a step in the order of the rows."""
    rows = rows[rows[:, 1].argsort(stable=True)]
    rows = rows[rows[:, 0].argsort(stable=True)]
    groups, counts = torch.unique_consecutive(rows[:, :2], dim=0, return_counts=True)
    for (_, bits), part in zip(groups.long().tolist(), rows.split(counts.tolist()), strict=True):
        index, target, other, correct, *values = part[:, 2:].unbind(1)
        yield bits, Showings(index.long(), target.long(), other.long(), correct > 0, *values)


def measure(indices: Tensor, logits: Tensor, targets: Tensor, num_samples: int) -> Showings:
    """What a batch of logits ``[B, C]`` says; InputError where shapes, types or a CPU index are not as `DynamicsRecorder.update` wants."""
    logits = logits.detach()
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError(f"logits must be [samples, classes] with at least two classes; got {list(logits.shape)}")
    _check("indices", indices, len(logits))
    _check("targets", targets, len(logits))
    if indices.device.type == "cpu" and len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < num_samples:
        wrong = int(indices.min()) if int(indices.min()) < 0 else int(indices.max())
        raise InputError(f"index {wrong} is outside [0, {num_samples}), the samples of this recorder; count as the data set does")
    targets = targets.to(logits.device, non_blocking=True).long()
    scores = logit_scores(logits, targets)
    assert scores.correct is not None and scores.evs is not None and scores.loss is not None
    column = targets.clamp(0, logits.shape[1] - 1)[:, None]  # on a GPU one out of range gives NaN scores, which are reported at the end
    others = logits.scatter(1, column, -torch.inf).max(1)
    margin = logits.gather(1, column).squeeze(1).double() - others.values.double()
    index = indices.to(logits.device, non_blocking=True).long()
    return Showings(index, targets, others.indices, scores.correct, margin, scores.evs.double(), scores.loss.double())


def _check(name: str, values: Any, size: int) -> None:
    """InputError unless `values` are integers ``[size]``."""
    if not isinstance(values, Tensor) or values.is_floating_point() or values.dtype == torch.bool or values.shape != (size,):
        got = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{name} must be integers, one per row of the logits, [{size}]; got {got}")


class Turns(NamedTuple):
    """The order in which a batch is counted: sorted by sample, and by place in the batch for a sample that comes more than once.

    ``order`` where each turn is in the batch; ``sample`` which one it is; ``first`` whether it is the sample's first in the batch;
    ``final`` the sample where it is the last, else the spare row.
    """

    order: Tensor
    sample: Tensor
    first: Tensor
    final: Tensor

    @classmethod
    def of(cls, samples: Tensor, spare: int) -> Turns:
        index, order = samples.sort(stable=True)
        edge = index.new_ones(1, dtype=torch.bool)
        change = index[1:] != index[:-1]
        first, last = torch.cat([edge[: len(index)], change]), torch.cat([change, edge[: len(index)]])
        return cls(order, index, first, torch.where(last, index, spare))


class Outcomes(NamedTuple):
    """Right or wrong so far: ``seen``, ``right``, ``lost`` int32 and ``last`` bool, a row per sample and a spare one; 13 bytes each."""

    seen: Tensor
    right: Tensor
    lost: Tensor
    last: Tensor

    @classmethod
    def none_yet(cls, rows: int, device: torch.device) -> Outcomes:
        seen, right, lost = (torch.zeros(rows, dtype=torch.int32, device=device) for _ in range(3))
        return cls(seen, right, lost, torch.zeros(rows, dtype=torch.bool, device=device))

    def add(self, turns: Turns, correct: Tensor) -> None:
        """Count a batch, whose `correct` is in the order of `turns`."""
        before = torch.where(turns.first, self.last[turns.sample], correct.roll(1))
        one = torch.ones_like(turns.sample, dtype=torch.int32)
        for counts, increment in ((self.seen, one), (self.right, correct.int()), (self.lost, (before & ~correct).int())):
            counts.index_put_((turns.sample,), increment, accumulate=True)
        self.last[turns.final] = correct


class Votes(NamedTuple):
    """Which other class a sample looks like, by the majority vote of Boyer and Moore: ``candidate`` and its ``lead``, int32, a row each.

    The candidate is the class that won most showings if one won more than half of them; 8 bytes a sample instead of a count per class.
    """

    candidate: Tensor
    lead: Tensor

    @classmethod
    def none_yet(cls, rows: int, device: torch.device) -> Votes:
        return cls(*(torch.zeros(rows, dtype=torch.int32, device=device) for _ in range(2)))

    def add(self, turns: Turns, other: Tensor) -> None:
        """Count a batch's `other`, in the order of `turns`; of a sample that comes more than once the last one votes."""
        candidate, lead, vote = self.candidate[turns.sample], self.lead[turns.sample], other.int()
        agrees = candidate == vote
        self.candidate[turns.final] = torch.where(lead == 0, vote, candidate)
        self.lead[turns.final] = torch.where((lead == 0) | agrees, lead + 1, lead - 1)
