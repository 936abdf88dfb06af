"""Selection policies: which samples each epoch trains on.

The protocol, the same for every policy (`fastqat.methods.ACS` included); a training loop needs no more than this::

    policy = RandomSubset(train_set, fraction=0.1, epochs=E)
    for epoch in range(E):
        changed = policy.begin_epoch(epoch)            # True when a new selection was made (ACS: that costs a scoring pass)
        for x, y in DataLoader(train_set, batch_size, sampler=policy.sampler): ...      # or train_set.batches(b, policy.sampler.order())
    policy.finish()                                    # after the last epoch; ACS: batch-norm statistics, if asked for

`policy.sampler`    `CoresetSampler` over the selection, shuffled per epoch from (seed, epoch)
`policy.selection`  `Selection`: ``indices`` int64, best first; None before the first `begin_epoch`
`policy.table`      `ScoreTable` of the last scoring pass, or None where nothing was scored
`policy.beta(epoch)`        weight of EVS in the blend at `epoch` (ACS), else None
`policy.scoring_forwards`   samples sent through a model for selection so far (student, teacher, batch-norm statistics)
`policy.selection_seconds`  seconds spent on selection so far
`policy.state_dict()` / `load_state_dict(state)`   tensors, numbers and strings only (``torch.load(weights_only=True)`` reads it);
    saved after epoch e and loaded into an equal policy, ``begin_epoch(e + 1)`` goes on as if nothing had happened
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastqat._errors import CheckpointError, DataError
from fastqat.selection.budget import as_labels, check_count, check_fraction, class_groups, whole_budget
from fastqat.selection.datasets import labels_of, sized
from fastqat.selection.sampler import CoresetSampler
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.selecting import select
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
            start = time.perf_counter()
            self.selection = self._select(epoch)
            self.sampler.set_indices(self.selection.indices, self.selection.weights)
            self.selection_seconds += time.perf_counter() - start
        self.sampler.begin_epoch(epoch)
        return changed

    def beta(self, epoch: int) -> float | None:
        """Weight of EVS at `epoch`; None for a policy that does not blend scores."""
        return None

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


class WholeSet(SelectionPolicy):
    """All samples in every epoch: ``--select none``. `begin_epoch` never reports a change.

    Example:
        >>> policy = WholeSet([0, 1, 0])
        >>> policy.begin_epoch(0), sorted(policy.sampler)
        (False, [0, 1, 2])
    """

    def __init__(self, dataset: Dataset | Sequence[Any], *, seed: int = 0, num_replicas: int = 1, rank: int = 0):
        super().__init__(sized(dataset), seed=seed, num_replicas=num_replicas, rank=rank)
        self.selection = self._select(0)
        self.sampler.set_indices(self.selection.indices)

    def _due(self, epoch: int) -> bool:
        return False

    def _select(self, epoch: int) -> Selection:
        return Selection(torch.arange(self.size))


class _DrawnSubset(SelectionPolicy):
    """What the policies that draw without scores share: fraction, balance, labels.

    Args:
        dataset: sized; its labels are read only when balanced.
        fraction: in (0, 1].
        balanced: round(fraction · n_c) of each class, else round(fraction · N) of all.
        labels: int ``[N]``; None asks the data set.

    Raises:
        InputError: fraction outside (0, 1] or leaving a class empty.
        DataError: empty data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        fraction: float = 0.1,
        balanced: bool = True,
        labels: Tensor | Sequence[int] | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ):
        super().__init__(sized(dataset), seed=seed, num_replicas=num_replicas, rank=rank)
        self.fraction, self.balanced = check_fraction(fraction), balanced
        self.labels: Tensor | None = None
        if balanced:
            self.labels = labels_of(dataset) if labels is None else as_labels(labels, self.size)
            class_groups(self.labels, fraction)
        else:
            whole_budget(self.size, fraction)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "fraction": self.fraction, "balanced": self.balanced}


class RandomSubset(_DrawnSubset):
    """A uniform subset, static (``interval=None``) or drawn anew every `interval` epochs: ``--select random``.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> policy = RandomSubset(TensorDataset(torch.zeros(20, 2), torch.arange(20) % 2), fraction=0.2, interval=10)
        >>> [policy.begin_epoch(epoch) for epoch in (0, 1, 10)], len(policy.selection)
        ([True, False, True], 4)
    """

    def __init__(self, dataset: Dataset, *, interval: int | None = None, **options: Any):
        super().__init__(dataset, **options)
        self.interval = None if interval is None else check_count("interval, in epochs (None: a static subset),", interval)

    def _due(self, epoch: int) -> bool:
        return self.interval is not None and epoch % self.interval == 0

    def _select(self, epoch: int) -> Selection:
        draw = 0 if self.interval is None else epoch // self.interval
        generator = generator_for(self.seed, Stream.SUBSET, draw)
        return select(self.size, self.fraction, method="random", labels=self.labels, balanced=self.balanced, generator=generator)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "interval": self.interval}


class RS2(_DrawnSubset):
    """A fresh uniform subset in every epoch: ``--select rs2``, the baseline to beat (Okanovic et al., ICLR 2024).

    Args:
        replacement: False runs through a permutation before a sample comes back; True draws each epoch independently.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> policy = RS2(TensorDataset(torch.zeros(20, 2), torch.arange(20) % 2), fraction=0.5)
        >>> halves = [policy.begin_epoch(epoch) and list(policy.sampler) for epoch in range(2)]
        >>> sorted(halves[0] + halves[1]) == list(range(20))
        True
    """

    def __init__(self, dataset: Dataset, *, replacement: bool = False, **options: Any):
        super().__init__(dataset, **options)
        self.replacement = replacement

    def _due(self, epoch: int) -> bool:
        return True

    def _select(self, epoch: int) -> Selection:
        return select(
            self.size,
            self.fraction,
            method="rs2",
            labels=self.labels,
            balanced=self.balanced,
            epoch=epoch,
            seed=self.seed,
            replacement=self.replacement,
        )

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "replacement": self.replacement}
