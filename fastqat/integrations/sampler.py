"""A sampler that makes its policy's selection when an epoch is iterated: for trainers that build their loaders before they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.utils.data import Sampler

from fastqat.selection.policies import SelectionPolicy


class EpochSampler(Sampler[int]):
    """``policy.sampler``, with ``policy.begin_epoch`` called once per epoch, when the epoch's first index is asked for.

    Args:
        policy: of `fastqat.selection.policies` or `fastqat.methods`, made for one process: the trainer shards.
        epoch: gives the epoch that the trainer is in, counted from 0.

    Example:
        >>> from fastqat.selection import RS2
        >>> from torch.utils.data import TensorDataset
        >>> import torch
        >>> policy = RS2(TensorDataset(torch.zeros(20, 2), torch.arange(20) % 2), fraction=0.5)
        >>> epochs = iter(range(2))
        >>> sampler = EpochSampler(policy, lambda: next(epochs))
        >>> sorted([*sampler, *sampler]) == list(range(20))
        True
    """

    def __init__(self, policy: SelectionPolicy, epoch: Callable[[], int]):
        self.policy, self.epoch = policy, epoch
        self.begun: int | None = None

    def _begin(self) -> None:
        epoch = self.epoch()
        if epoch != self.begun:
            self.policy.begin_epoch(epoch)
            self.begun = epoch

    def __iter__(self) -> Iterator[int]:
        self._begin()
        return iter(self.policy.sampler)

    def __len__(self) -> int:
        if self.policy.selection is None:
            self._begin()
        return len(self.policy.sampler)
