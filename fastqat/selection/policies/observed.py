"""Scores that the training forward gives away, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastqat._distributed import gather_rows, world
from fastqat._errors import InputError
from fastqat.ops.logit_scores.api import LogitScores, logit_scores
from fastqat.selection.scores.registry import get_score
from fastqat.selection.table import ScoreTable

# Logits wait until this many values are there: scoring checks the labels, and that waits for a GPU.
_WAITING_VALUES = 2**24


class ObservedScores:
    """The last observed scores of each sample, its label, and the epoch in which it was seen; on the CPU.

    Args:
        size: N, the length of the data set.
        names: scores of stage "logits" that may be asked for.
        options: of these scores.
    """

    def __init__(self, size: int, names: Sequence[str], options: Mapping[str, Any]):
        self.size, self.names, self.options = size, list(names), options
        self.values = torch.full((size, len(self.names)), torch.nan)
        self.labels = torch.full((size,), -1)
        self.epochs = torch.full((size,), -1)
        self._waiting: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = []
        self._context: tuple[int, list[str]] = (-1, [])
        self._unshared: list[Tensor] = []

    def add(
        self, epoch: int, wanted: Sequence[str], indices: Tensor, logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None
    ) -> None:
        """Take one batch of `epoch`, of which the scores `wanted` will be needed.

        Raises:
            InputError: other lengths than that of the logits, indices outside the data set (those on a GPU: later), or no targets or
                teacher logits where a score needs them.
        """
        needs = {need for name in wanted for need in get_score(name).needs}
        for name, given in (("targets", targets), ("teacher_logits", teacher_logits)):
            if given is None and name.removesuffix("_logits") in needs:
                raise InputError(f"observe needs {name}= for {', '.join(wanted)}; pass those of the same batch")
        if indices.shape != logits.shape[:1] or indices.is_floating_point():
            raise InputError(f"observe needs one index per sample, [{logits.shape[0]}] integers; got {indices.dtype} {list(indices.shape)}")
        if self._context != (epoch, list(wanted)):
            self._score()
            self._context = (epoch, list(wanted))
        taught = teacher_logits if "teacher" in needs else None
        # Copies: compiled models may write the next batch's logits to the same place.
        kept = (None if t is None else t.detach().clone() for t in (indices, logits, targets, taught))
        self._waiting.append(tuple(kept))  # type: ignore[arg-type]  # four of them
        if sum(logits.numel() for _, logits, _, _ in self._waiting) >= _WAITING_VALUES:
            self._score()

    def _score(self) -> None:
        """Turn the logits that wait into scores."""
        if not self._waiting:
            return
        device = self._waiting[0][1].device
        indices, logits, targets, taught = (
            None if parts[0] is None else torch.cat([part.to(device) for part in parts]) for parts in zip(*self._waiting, strict=True)
        )
        assert indices is not None and logits is not None
        self._waiting = []
        epoch, wanted = self._context
        scores = logit_scores(logits, None if targets is None else targets.long(), taught)
        labels = torch.full_like(indices, -1) if targets is None else targets
        columns = [indices, labels, torch.full_like(indices, epoch)]
        unknown = torch.full_like(logits[:, 0], torch.nan)
        columns += [self._column(name, scores) if name in wanted else unknown for name in self.names]
        self._write(torch.stack([column.double() for column in columns], dim=1).cpu())

    def _column(self, name: str, scores: LogitScores) -> Tensor:
        score = get_score(name)
        return score(scores, **{key: self.options[key] for key in score.options if key in self.options})

    def _write(self, rows: Tensor, *, share: bool = True) -> None:
        """Keep rows of (index, label, epoch, scores ...), fp64 ``[B, 3 + S]``."""
        index = rows[:, 0].long()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.size:
            raise InputError(f"observe got indices from {int(index.min())} to {int(index.max())}; the data set has {self.size} samples")
        self.labels[index], self.epochs[index] = rows[:, 1].long(), rows[:, 2].long()
        self.values[index] = rows[:, 3:].float()
        if share and world().size > 1:
            self._unshared.append(rows)

    def share(self) -> None:
        """Several processes: put together what each observed since the last call; all of them call it."""
        self._score()
        if world().size == 1:
            return
        own = torch.cat(self._unshared) if self._unshared else torch.empty(0, 3 + len(self.names), dtype=torch.float64)
        self._unshared = []
        for rows in gather_rows(own):
            self._write(rows, share=False)

    def fresh(self, wanted: Sequence[str], since: int) -> Tensor:
        """Which samples have the scores `wanted` from epoch `since` or later: bool ``[N]``."""
        columns = [self.names.index(name) for name in wanted]
        return (self.epochs >= since) & ~self.values[:, columns].isnan().any(dim=1)

    def table(self, wanted: Sequence[str], rest: Tensor, passed: ScoreTable | None) -> ScoreTable:
        """The scores `wanted` of all samples: those at the indices `rest` from the table `passed`, the others as observed."""
        columns = {name: self.values[:, self.names.index(name)].clone() for name in wanted}
        labels = self.labels.clone()
        if passed is not None:
            for name, values in columns.items():
                values[rest] = passed[name]
            labels[rest] = -1 if passed.labels is None else passed.labels
        return ScoreTable(columns, labels if bool((labels >= 0).all()) else None)

    def state_dict(self) -> dict[str, Any]:
        """What was observed so far; in several processes after `share`."""
        self._score()
        return {"names": self.names, "values": self.values, "labels": self.labels, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._waiting, self._unshared = [], []
        self.values, self.labels, self.epochs = (state[name].clone() for name in ("values", "labels", "epochs"))
