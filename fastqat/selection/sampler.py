"""Feed a selection to a data loader: `CoresetSampler`, and `IndexedDataset` for loops that need to know which sample is which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.seeding import Stream, generator_for


class CoresetSampler(Sampler[int]):
    """Indices of the selected samples, shuffled anew each epoch: ``DataLoader(dataset, batch_size, sampler=sampler)``.

    The order is a pure function of ``(seed, epoch)``. With several processes every rank takes each `num_replicas`-th index of that
    order, and all ranks get the same number of samples, so the same number of batches: ⌈n / num_replicas⌉. Where n is no multiple, up to
    num_replicas − 1 samples from the start of the epoch's order come a second time, with the loss weight that they have.

    Who shards:

    - a plain loop in `DistributedDataParallel`: this sampler; pass `num_replicas` and `rank`, and `begin_epoch` on every rank.
    - Accelerate, and the Trainer of transformers: ``Accelerator.prepare`` deals the batches of a loader to the processes; leave
      ``num_replicas=1``. It completes the last round from the start of the order (``even_batches=False`` does not), and it calls
      `set_epoch` with a count of its own: after a resume call ``loader.set_epoch(epoch)``.
    - Lightning: ``Trainer(use_distributed_sampler=True)``, its default, shuffles the order once more, deals the samples and repeats some
      to even the ranks out; leave ``num_replicas=1``. It reads the length once per loader: where selections differ in size set
      ``reload_dataloaders_every_n_epochs=1``. With ``use_distributed_sampler=False`` pass `num_replicas` and `rank`.
    - ``fastqat train`` under torchrun deals each batch itself, without padding.

    Both at once would give each process a part of its part.

    Args:
        indices: int64 ``[n]``, positions in the data set; None until `set_indices` is called. One that is there twice comes twice.
        weights: ``[n]``, finite and ≥ 0, the loss weight of each of `indices`, or None; `loss_weights` looks them up, so that an index that
            is there twice must have one weight.
        shuffle: False keeps the order of `indices`.
        seed: of the shuffling.
        num_replicas, rank: number of processes and which one this is.

    Raises:
        InputError: no index, a negative one, weights of another length, negative, infinite or NaN, or two of one index; a seed below 0,
            rank outside ``[0, num_replicas)``.

    Example:
        >>> sampler = CoresetSampler([4, 8, 15, 16], seed=1)
        >>> sampler.begin_epoch(0); first = list(sampler)
        >>> sampler.begin_epoch(1); second = list(sampler)
        >>> sorted(first) == sorted(second) == [4, 8, 15, 16]
        True
    """

    def __init__(
        self,
        indices: Tensor | Sequence[int] | None,
        *,
        weights: Tensor | Sequence[float] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ):
        check_count("seed", seed, least=0)
        check_count("num_replicas", num_replicas)
        if check_count("rank", rank, least=0) >= num_replicas:
            raise InputError(f"rank must be in [0, num_replicas); got rank {rank} of {num_replicas}")
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.num_replicas, self.rank = num_replicas, rank
        self.indices: Tensor | None = None
        self.weights: Tensor | None = None
        self._lookup: tuple[Tensor, Tensor] = (torch.empty(0, dtype=torch.int64), torch.empty(0))  # indices in order, weights
        if indices is not None:
            self.set_indices(indices, weights)

    def set_indices(self, indices: Tensor | Sequence[int], weights: Tensor | Sequence[float] | None = None) -> None:
        """Replace the selection (and its weights); the next iteration uses it. Raises as the class does."""
        indices = torch.as_tensor(indices).cpu()
        if indices.dim() != 1 or indices.numel() == 0 or indices.is_floating_point() or int(indices.min()) < 0:
            raise InputError(f"indices must be a non-empty list of integers ≥ 0; got shape {tuple(indices.shape)}, {indices.dtype}")
        indices = indices.long()
        if weights is not None:
            weights = torch.as_tensor(weights).detach().float().cpu()
            self._lookup = _lookup(indices, weights)
        self.indices, self.weights = indices, weights

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch that the order is drawn for."""
        self.epoch = epoch

    set_epoch = begin_epoch

    def order(self) -> Tensor:
        """This rank's indices of this epoch in order: int64 ``[len(self)]``. Loops over data on a device use it without a loader."""
        indices = self._selected()
        if self.shuffle:
            indices = indices[torch.randperm(len(indices), generator=generator_for(self.seed, Stream.SHUFFLE, self.epoch))]
        if self.num_replicas == 1:
            return indices
        padded = len(self) * self.num_replicas
        return indices.repeat(math.ceil(padded / len(indices)))[self.rank : padded : self.num_replicas]

    def loss_weights(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Loss weight of each data-set index in `indices` (any device), fp32, same shape; ones where the selection has no weights.

        Raises:
            InputError: an index is not in the selection.
        """
        indices = torch.as_tensor(indices)
        if self.weights is None:
            return torch.ones(indices.shape, device=indices.device)
        ordered, weights = self._lookup
        found = torch.searchsorted(ordered, indices.cpu().contiguous()).clamp_(max=len(ordered) - 1)
        if not torch.equal(ordered[found], indices.cpu()):
            raise InputError("loss_weights was asked for an index outside the current selection; give it indices that this sampler yielded")
        return weights[found].to(indices.device)

    def _selected(self) -> Tensor:
        if self.indices is None:
            raise InputError("nothing is selected yet; call begin_epoch(0) of the selection policy before the first batch")
        return self.indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return math.ceil(len(self._selected()) / self.num_replicas)

    def state_dict(self) -> dict[str, Any]:
        """Everything but `num_replicas` and `rank`, which belong to the process."""
        return {"indices": self.indices, "weights": self.weights, "shuffle": self.shuffle, "seed": self.seed, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave: the same orders follow."""
        self.shuffle, self.seed, self.epoch = state["shuffle"], state["seed"], state["epoch"]
        self.indices, self.weights = None, None
        if state["indices"] is not None:
            self.set_indices(state["indices"], state["weights"])


def _lookup(indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The indices in order, and the weight of each."""
    if weights.shape != indices.shape:
        raise InputError(f"weights must have one value per index, {tuple(indices.shape)}; got {tuple(weights.shape)}")
    bad = ~(weights.isfinite() & (weights >= 0))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise InputError(f"weights must be finite and ≥ 0; got {float(weights[first])} for index {int(indices[first])}")
    ordered, position = indices.sort()
    values = weights[position]
    twice = (ordered[1:] == ordered[:-1]) & (values[1:] != values[:-1])
    if twice.any():
        raise InputError(f"index {int(ordered[1:][twice][0])} is there twice with two weights; give it one, or list it once")
    return ordered, values


SAMPLE_INDEX = "sample_index"
"""Key under which `IndexedDataset` puts the index into samples that are mappings."""


class IndexedDataset(Dataset):
    """Yields ``(x, y, index)`` where `dataset` yields ``(x, y)``, and a mapping with ``"sample_index"`` added where it yields a mapping.

    Take the index out (``batch.pop("sample_index")``) before a batch goes to a model that takes keywords; scoring passes do.

    Raises:
        InputError: on reading a sample that is neither.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> import torch
        >>> IndexedDataset(TensorDataset(torch.zeros(3, 2), torch.arange(3)))[1]
        (tensor([0., 0.]), tensor(1), 1)
        >>> IndexedDataset([{"input_ids": 7, "labels": 1}])[0]
        {'input_ids': 7, 'labels': 1, 'sample_index': 0}
    """

    def __init__(self, dataset: Dataset | Sequence[Any]):
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[Any, Any, int] | dict[str, Any]:
        sample = self.dataset[index]
        if isinstance(sample, Mapping):
            return {**sample, SAMPLE_INDEX: index}
        if not isinstance(sample, (tuple, list)) or len(sample) < 2:
            got = f"a {type(sample).__name__}" + (f" of {len(sample)}" if isinstance(sample, (tuple, list)) else "")
            raise InputError(f"samples must be (x, y) or mappings such as {{'input_ids': ..., 'labels': ...}}; got {got}")
        return sample[0], sample[1], index

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset declares no __len__
