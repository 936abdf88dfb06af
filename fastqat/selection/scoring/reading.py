"""`Reader`: the batches of a pass, whichever way the data come, for all of them or for one process's share."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler

from fastqat._errors import DataError, InputError
from fastqat.selection.budget import check_count
from fastqat.selection.datasets import sized, split_batch

_KEPT_SETTINGS = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")


class Deal(NamedTuple):
    """Which batches are this process's: each `size`-th of the data set's, from number `rank` on."""

    rank: int = 0
    size: int = 1


class Batch(NamedTuple):
    """``(x, y)`` and the data-set index of its first sample."""

    start: int
    x: Any
    y: Any


class Reader:
    """The batches of a data set in its order, never shuffled, drawing nothing from torch's global generator.

    Args:
        data: a map-style data set, one with ``.batches(batch_size)``, an `IterableDataset`, or a `DataLoader` over either that does not
            shuffle, whose own batch size, workers and ``collate_fn`` then count.
        batch_size: samples per batch.
        num_workers: of the loader.

    Attributes:
        dataset: what is read, without a loader around it.
        size: its number of samples; None where only the end tells.
        batch_size: as it counts; None for a loader of data that come in batches.

    Raises:
        InputError: no data set, a loader that shuffles, drops or picks samples, several workers for a stream.
        DataError: an empty data set.
    """

    def __init__(self, data: Dataset | DataLoader, batch_size: int, num_workers: int = 0):
        self._loader = data if isinstance(data, DataLoader) else None
        self._settings: dict[str, Any] = {"num_workers": num_workers}
        self.dataset: Any = data
        self.batch_size: int | None = check_count("batch_size", batch_size)
        if self._loader is not None:
            self.dataset = self._loader.dataset
            self.batch_size = _batch_size_in_order(self._loader)
            self._settings = {name: getattr(self._loader, name) for name in _KEPT_SETTINGS}
        self.streams = isinstance(self.dataset, IterableDataset) or self.batch_size is None
        if self.streams and self._loader is None and num_workers > 1:
            raise InputError(
                f"num_workers is {num_workers} for an iterable data set: each worker would read all of it; accepted: 0 or 1, or a "
                "DataLoader of yours over data that divide themselves among workers, scored in the order in which it yields them"
            )
        self.size = self._size()
        if self.streams and self.size is None and self._settings["num_workers"] > 1:
            warnings.warn(
                f"{type(self.dataset).__name__} is read by {self._settings['num_workers']} workers: rows come in the order in which these "
                "yield, and a data set that does not divide itself among them (torch.utils.data.get_worker_info) comes once from each",
                stacklevel=3,
            )

    def _size(self) -> int | None:
        if self.batch_size is None:
            return None
        if self.streams and not hasattr(self.dataset, "__len__"):
            return None
        return sized(self.dataset)

    def share(self, deal: Deal) -> int | None:
        """Number of samples of the batches of `deal`; None where only the end tells."""
        if self.size is None or self.batch_size is None or (self.streams and deal.size > 1):
            return None
        numbers = self._numbers(deal, 0)
        full = len(numbers) * self.batch_size
        last_is_here = len(numbers) > 0 and (numbers[-1] + 1) * self.batch_size > self.size
        return full - (-self.size % self.batch_size) if last_is_here else full

    def _numbers(self, deal: Deal, done: int) -> range:
        """Numbers of the batches of `deal`, without the first `done` of them."""
        assert self.size is not None and self.batch_size is not None
        return range(deal.rank + done * deal.size, -(-self.size // self.batch_size), deal.size)

    def batches(self, deal: Deal, done: int = 0, *, pin_memory: bool = False) -> Iterator[Batch]:
        """The batches of `deal`, without the first `done` of them; of a stream every process reads all and passes over the others'."""
        own = self._loader is None and hasattr(self.dataset, "batches")
        if self.streams or (own and "indices" not in inspect.signature(self.dataset.batches).parameters):
            source = self.dataset.batches(self.batch_size) if own else self._stream(pin_memory)
            yield from _dealt(map(split_batch, source), deal, done)
            return
        assert self.batch_size is not None
        numbers = self._numbers(deal, done)
        if own:
            source = self._own(numbers) if deal.size > 1 or done else self.dataset.batches(self.batch_size)
        else:
            source = self._load(batch_sampler=_Numbered(numbers, self.batch_size, sized(self.dataset)), pin_memory=pin_memory)
        for number, batch in zip(numbers, source, strict=False):  # a data set that is shorter than it says is reported at the end
            yield Batch(number * self.batch_size, *split_batch(batch))

    def _own(self, numbers: range) -> Iterable[Any]:
        """The data set's own batches of these numbers."""
        if not len(numbers):
            return ()
        indices = [torch.tensor(part) for part in _Numbered(numbers, self.batch_size, self.size)]
        return self.dataset.batches(self.batch_size, torch.cat(indices))

    def _stream(self, pin_memory: bool) -> Iterable[Any]:
        return self._load(batch_size=self.batch_size, pin_memory=pin_memory)

    def _load(self, *, pin_memory: bool, **batching: Any) -> DataLoader:
        settings = {**self._settings, "pin_memory": pin_memory or self._settings.get("pin_memory", False)}
        return DataLoader(self.dataset, generator=torch.Generator(), **batching, **settings)


class _Numbered(Sampler[list[int]]):
    """The indices of the batches called `numbers`, of a data set of `size` samples in batches of `batch_size`."""

    def __init__(self, numbers: range, batch_size: int | None, size: int | None):
        assert batch_size is not None and size is not None
        self.numbers, self.batch_size, self.size = numbers, batch_size, size

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.numbers:
            yield list(range(number * self.batch_size, min((number + 1) * self.batch_size, self.size)))

    def __len__(self) -> int:
        return len(self.numbers)


def _batch_size_in_order(loader: DataLoader) -> int | None:
    """The batch size of a loader that yields every sample in data-set order.

    Raises:
        InputError: it does not.
    """
    if type(loader) is not DataLoader:
        raise InputError(
            f"{type(loader).__name__} may reorder or divide samples; pass its .dataset, or a plain torch.utils.data.DataLoader"
        )
    batching = loader.batch_sampler
    plain = type(batching) is BatchSampler if batching is not None else True
    sampler = getattr(batching, "sampler", loader.sampler)
    if not isinstance(loader.dataset, IterableDataset) and (not plain or type(sampler) is not SequentialSampler):
        found = type(sampler if plain else batching).__name__
        raise InputError(f"the DataLoader takes its samples from a {found}; pass shuffle=False and no sampler, or the data set itself")
    if getattr(batching, "drop_last", loader.drop_last):
        raise InputError("the DataLoader has drop_last=True, which leaves samples without a score; pass drop_last=False")
    return loader.batch_size if batching is None else getattr(batching, "batch_size", loader.batch_size)


def _dealt(source: Iterable[tuple[Any, Any]], deal: Deal, done: int) -> Iterator[Batch]:
    """The batches of `deal`, without the first `done`, out of all."""
    start = 0
    for number, (x, y) in enumerate(source):
        if number % deal.size == deal.rank and number // deal.size >= done:
            yield Batch(start, x, y)
        start += samples_in(y if isinstance(y, Tensor) else x)


def samples_in(x: Any) -> int:
    """Number of samples of a batch: the length of the first tensor in it, or of what holds none."""
    if isinstance(x, Tensor):
        return len(x)
    parts = list(x.values()) if isinstance(x, Mapping) else list(x) if isinstance(x, (list, tuple)) else []
    tensors = [part for part in parts if isinstance(part, (Tensor, Mapping))]
    if tensors:
        return samples_in(tensors[0])
    if not hasattr(x, "__len__"):
        raise DataError(f"cannot tell the number of samples in a batch that is {type(x).__name__}; yield tensors, or mappings of tensors")
    return len(x)
