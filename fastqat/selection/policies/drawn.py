"""The policies that need no scores: everything, a random subset, and a fresh one in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastqat.selection.budget import as_labels, check_count, check_fraction, class_groups, whole_budget
from fastqat.selection.datasets import labels_of, sized
from fastqat.selection.policies.base import SelectionPolicy
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.selecting import select
from fastqat.selection.selectors.registry import Selection


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
