"""What selection needs to know of a data set: its samples in order, and its labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from fastqat._errors import DataError, InputError
from fastqat.selection.budget import as_labels
from fastqat.selection.forwards import Keywords
from fastqat.selection.sampler import SAMPLE_INDEX, IndexedDataset

_LABEL_ATTRIBUTES = ("targets", "labels", "y")
_LABEL_KEYS = ("labels", "label")


def sized(dataset: Dataset | Sequence[Any]) -> int:
    """``len(dataset)``.

    Raises:
        InputError: the data set is iterable only.
        DataError: it is empty.
    """
    try:
        size = len(dataset)  # type: ignore[arg-type]  # Dataset declares no __len__
    except TypeError:
        raise InputError(f"{type(dataset).__name__} has no length; pass a map-style data set (__len__ and __getitem__)") from None
    if size == 0:
        raise DataError("the data set is empty; check its path and its filters")
    return size


def batches_of(
    dataset: Dataset, batch_size: int, *, indices: Tensor | None = None, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[tuple[Any, Tensor | None]]:
    """Yield ``(x, y)`` batches in data-set order, or in the order of `indices`; y is None where the data set gives none, see `split_batch`.

    A data set with ``.batches(batch_size, indices=None)`` (`fastqat.data.TensorData`) feeds itself; others go through a `DataLoader`.
    Reading draws nothing from torch's global generator: a scoring pass does not change the training that follows.
    """
    if hasattr(dataset, "batches"):
        yield from dataset.batches(batch_size) if indices is None else dataset.batches(batch_size, indices)
        return
    source = dataset if indices is None else Subset(dataset, indices.tolist())
    loader: DataLoader = DataLoader(source, batch_size, num_workers=num_workers, pin_memory=pin_memory, generator=torch.Generator())
    yield from map(split_batch, loader)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """``(x, y)`` of what a loader yields: a pair, a mapping with ``labels`` or ``label``, or x alone.

    Of a mapping x is the rest, without the index that `IndexedDataset` puts in.
    """
    if isinstance(batch, (tuple, list)):
        return batch[0], batch[1] if len(batch) > 1 else None
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
        return Keywords({key: value for key, value in batch.items() if key not in (*_LABEL_KEYS, SAMPLE_INDEX)}), labels
    return batch, None


def known_labels(dataset: Dataset | Sequence[Any]) -> Tensor | None:
    """Labels that the data set carries as an attribute (``targets``, ``labels``, ``y``), int64 ``[N]``; None when it has none.

    Looks through `Subset`, `ConcatDataset` and `IndexedDataset`; a ``target_transform`` makes them unknown.
    """
    if isinstance(dataset, Subset):
        inner = known_labels(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [known_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat([part for part in parts if part is not None])
    if isinstance(dataset, IndexedDataset):
        return known_labels(dataset.dataset)
    if isinstance(dataset, TensorDataset):
        return _integers(dataset.tensors[1], len(dataset)) if len(dataset.tensors) > 1 else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    found = (_integers(getattr(dataset, name, None), sized(dataset)) for name in _LABEL_ATTRIBUTES)
    return next((labels for labels in found if labels is not None), None)


def _integers(values: Any, size: int) -> Tensor | None:
    """`values` as int64 ``[size]``, or None when they are something else (class names, boxes, ...)."""
    try:
        return as_labels(values, size)
    except (InputError, TypeError, ValueError, RuntimeError):
        return None


def labels_of(dataset: Dataset, batch_size: int = 1024) -> Tensor:
    """Labels of every sample, int64 ``[N]``: an attribute of the data set, else read from the samples one by one.

    Raises:
        DataError: the data set gives no labels, or is empty.
    """
    size, labels = sized(dataset), known_labels(dataset)
    if labels is not None:
        return labels
    read = [y for _, y in batches_of(dataset, batch_size) if y is not None]
    if not read:
        raise DataError("the data set yields no labels; pass labels=, or balanced=False where labels are not needed")
    return as_labels(torch.cat(read), size)
