"""Fingerprints of data and models: what a file of earlier results must agree with before it is used again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from fastqat._errors import InputError
from fastqat._tensor_data import TensorData
from fastqat.selection.datasets import known_labels, sized
from fastqat.selection.determinism import PROBES, other_random_state
from fastqat.selection.sampler import IndexedDataset
from fastqat.selection.scoring.content import content_hash

_TRANSFORMS = ("transform", "target_transform", "transforms", "collate_fn")
_Stamp = tuple[tuple[weakref.ref, int, int], ...]  # of each tensor: itself, its version, its address
_seen: weakref.WeakKeyDictionary[Any, tuple[_Stamp, str]] = weakref.WeakKeyDictionary()


def model_fingerprint(model: nn.Module) -> str:
    """A hash of the layers (`repr`), and of the names and values of all parameters and buffers; not of what ``forward`` does beside them.

    All values are read every time (0.1 s for 100 MB): no counter of torch tells of every change, that by a fused optimizer for one.
    """
    return content_hash(model)


def data_fingerprint(dataset: Any) -> str:
    """A hash that changes with the samples of a map-style data set.

    Of `TensorData` and `TensorDataset` the content, and so of `Subset`, `ConcatDataset` and `IndexedDataset` of these. Of any other: its
    type and length, the labels where they are known without reading samples, its transforms (see `content_hash`), and up to 16 samples,
    evenly spaced from the first to the last, read under a fixed random state. Not seen: a change in other samples that leaves all this
    alone.

    Raises:
        InputError: an iterable data set, whose samples cannot be looked up.
    """
    kind = type(dataset)
    if kind is TensorDataset:
        return _remembered(dataset, dataset.tensors, lambda: content_hash("TensorDataset", *dataset.tensors))
    if kind is TensorData:
        tensors = (dataset.x, dataset.y, dataset.mean, dataset.std)
        return _remembered(dataset, tensors, lambda: content_hash("TensorData", *tensors))
    if kind is Subset:
        return content_hash("Subset", data_fingerprint(dataset.dataset), torch.as_tensor(dataset.indices))
    if kind is ConcatDataset:
        return content_hash("ConcatDataset", *map(data_fingerprint, dataset.datasets))
    if kind is IndexedDataset:
        return content_hash("IndexedDataset", data_fingerprint(dataset.dataset))
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise InputError(f"the content of {kind.__name__} cannot be told without reading all of it; give it a name of yours with data_key=")
    return _sampled(dataset)


def _sampled(dataset: Any) -> str:
    """The fingerprint of a data set of an unknown kind."""
    size = sized(dataset)
    probes = min(PROBES, size)
    transforms = [getattr(dataset, name, None) for name in _TRANSFORMS]
    with other_random_state(0):
        samples = [dataset[i * (size - 1) // max(probes - 1, 1)] for i in range(probes)]
    return content_hash(type(dataset).__qualname__, size, known_labels(dataset), transforms, samples)


def _remembered(owner: Any, tensors: Iterable[Tensor], compute: Callable[[], str]) -> str:
    """``compute()``, or what it gave for `owner` when none of its `tensors` was replaced or changed in place since."""
    tensors = list(tensors)
    if any(tensor.is_inference() for tensor in tensors):
        return compute()
    stamp = tuple((weakref.ref(tensor), tensor._version, tensor.data_ptr()) for tensor in tensors)
    if owner not in _seen or not _same_stamp(_seen[owner][0], stamp):
        _seen[owner] = (stamp, compute())
    return _seen[owner][1]


def _same_stamp(old: _Stamp, new: _Stamp) -> bool:
    """Whether these are the very same tensors, unchanged; another one may lie where one of them was."""
    return len(old) == len(new) and all(a[0]() is b[0]() and a[1:] == b[1:] for a, b in zip(old, new, strict=True))
