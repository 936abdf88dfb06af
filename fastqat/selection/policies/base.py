"""`SelectionPolicy`: what all policies have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fastqat._errors import CheckpointError, DataError
from fastqat.selection.budget import check_count
from fastqat.selection.sampler import CoresetSampler
from fastqat.selection.selectors.registry import Selection
from fastqat.selection.table import ScoreTable


class SelectionPolicy(ABC):
    """Base of all policies: timing, counting, sampler and state; a policy says when (`_due`) and what (`_select`).

    Args:
        size: number of samples in the data set.
        seed: of every draw and of the shuffling.
        num_replicas, rank: for the sampler.

    Raises:
        DataError: `size` is 0.
    """

    def __init__(self, size: int, *, seed: int = 0, num_replicas: int = 1, rank: int = 0):
        if size < 1:
            raise DataError("the data set is empty; check its path and its filters")
        self.size, self.seed = size, seed
        self.sampler = CoresetSampler(None, seed=seed, num_replicas=num_replicas, rank=rank)
        self.selection: Selection | None = None
        self.table: ScoreTable | None = None
        self.scoring_forwards = 0
        self.selection_seconds = 0.0

    @abstractmethod
    def _due(self, epoch: int) -> bool:
        """Whether a new selection is made before `epoch`."""

    @abstractmethod
    def _select(self, epoch: int) -> Selection:
        """The selection that holds from `epoch` on."""

    def begin_epoch(self, epoch: int) -> bool:
        """Prepare `sampler` for `epoch`; True when a new selection was made.

        Raises:
            InputError: `epoch` is not a whole number ≥ 0.
        """
        check_count("epoch", epoch, least=0)
        changed = self.selection is None or self._due(epoch)
        if changed:
            with self.timed():
                self.selection = self._select(epoch)
                self.sampler.set_indices(self.selection.indices, self.selection.weights)
        self.sampler.begin_epoch(epoch)
        return changed

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds of the block as those of selection."""
        start = time.perf_counter()
        yield
        self.selection_seconds += time.perf_counter() - start

    def beta(self, epoch: int) -> float | None:
        """Weight of EVS at `epoch`; None for a policy that does not blend scores."""
        return None

    @property
    def observing(self) -> bool:
        """Whether `observe` takes anything from this epoch; a loop that finds it False may leave `observe` out."""
        return False

    @property
    def observes_teacher(self) -> bool:
        """Whether `observe` needs the teacher's logits in this epoch."""
        return False

    def observe(  # noqa: B027 (most policies look at nothing)
        self, indices: Tensor, logits: Tensor, targets: Tensor | None = None, teacher_logits: Tensor | None = None
    ) -> None:
        """Show the policy a batch of the training forward, detached or not; it waits for no device.

        Args:
            indices: int64 ``[B]``, places in the data set, on any device.
            logits: ``[B, C]``, of the model in training.
            targets: int64 ``[B]``, the labels.
            teacher_logits: ``[B, C]``, of the teacher on the same samples, augmented as they were; see `observes_teacher`.
        """

    def end_epoch(self) -> None:  # noqa: B027 (most policies have nothing to share)
        """Call after the last batch of an epoch, in every process, before `state_dict`: what the processes observed is put together."""

    def finish(self) -> None:  # noqa: B027 (most policies have nothing left to do)
        """Call after the last epoch."""

    def _settings(self) -> dict[str, Any]:
        """What two policies must share for the state of one to continue the other."""
        return {"policy": type(self).__name__, "size": self.size, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """Everything that `begin_epoch` of the next epoch depends on."""
        return {
            "settings": self._settings(),
            "sampler": self.sampler.state_dict(),
            "table": None if self.table is None else self.table.state_dict(),
            "scoring_forwards": self.scoring_forwards,
            "selection_seconds": self.selection_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: it was taken from a policy with other settings.
        """
        mine, theirs = self._settings(), state["settings"]
        if mine != theirs:
            differing = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
            found = ", ".join(f"{key} {theirs.get(key)!r} (here {mine.get(key)!r})" for key in differing)
            raise CheckpointError(f"the selection state was saved with {found}; resume with the same settings or start a new run")
        self.sampler.load_state_dict(state["sampler"])
        indices = self.sampler.indices
        self.selection = None if indices is None else Selection(indices, self.sampler.weights)
        self.table = None if state["table"] is None else ScoreTable.from_state_dict(state["table"])
        self.scoring_forwards, self.selection_seconds = state["scoring_forwards"], state["selection_seconds"]
