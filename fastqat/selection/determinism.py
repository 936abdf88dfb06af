"""Whether two reads of a data set give the same: what a scoring pass may take as the plain view."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fastqat._errors import InputError
from fastqat._tensor_data import TensorData
from fastqat.selection.datasets import batches_of, sized
from fastqat.selection.sampler import IndexedDataset

PROBES = 16
"""Samples that `check_deterministic` reads: a flip of every second picture goes unnoticed once in 2¹⁶ checks."""

_DETERMINISTIC_TRANSFORMS = frozenset(
    (
        *("CenterCrop", "Pad", "Resize", "Grayscale", "Normalize"),
        *("ConvertImageDtype", "PILToTensor", "ToDtype", "ToImage", "ToPureTensor", "ToTensor"),
    )
)


def check_deterministic(dataset: Dataset) -> None:
    """Refuse a data set of which two reads may differ.

    A ``transform`` must be one of torchvision's plain conversions. Tensors held in memory, torchvision's own data sets, and subsets and
    concatenations of these are then known to be deterministic. Of any other type up to `PROBES` samples, evenly spaced from the first
    to the last, are read twice under different states of the global generators of torch, numpy and Python (all put back): they must
    agree in every value. This is a check, not a proof: what changes rarely, or only in other samples, passes.

    Raises:
        InputError: it applies a transform that may be random, or a sample changed between the two reads.
    """
    remedy = "pass score_view= the same data without augmentation"
    transform = random_transform(dataset)
    if transform:
        raise InputError(f"the data set applies {transform}, which may augment at random; {remedy} (or the data set itself if it does not)")
    if _is_known(dataset):
        return
    index = _first_difference(dataset)
    if index is not None:
        kind = type(dataset).__name__
        raise InputError(f"two reads of sample {index} of {kind} differ, so that it augments or draws at random; {remedy}")


def random_transform(dataset: Dataset) -> str | None:
    """Name of a ``transform`` that is not known to be deterministic, anywhere below `dataset`; None when there is none.

    Known: no ``transform`` at all, and torchvision's plain conversions (resize, crop at the centre, normalise, ...).
    """
    if isinstance(dataset, ConcatDataset):
        return next((name for part in dataset.datasets if (name := random_transform(part))), None)
    for attribute in ("transform", "transforms"):
        name = _random_part(getattr(dataset, attribute, None))
        if name:
            return name
    return random_transform(dataset.dataset) if hasattr(dataset, "dataset") else None


def _random_part(transform: Any) -> str | None:
    """The first part of a (composed) transform that may be random."""
    if transform is None:
        return None
    kind = type(transform)
    if kind.__module__.startswith("torchvision."):
        if kind.__name__ == "StandardTransform":
            return _random_part(transform.transform)
        if kind.__name__ == "Compose":
            return next((name for part in transform.transforms if (name := _random_part(part))), None)
        if kind.__name__ in _DETERMINISTIC_TRANSFORMS:
            return None
    return getattr(transform, "__name__", kind.__name__)


def _is_known(dataset: Dataset) -> bool:
    """Whether the type alone says that a read draws nothing (its transforms aside); exact types, as a subclass may do anything."""
    kind = type(dataset)
    if kind is ConcatDataset:
        return all(_is_known(part) for part in dataset.datasets)  # type: ignore[attr-defined]  # its type is known
    if kind in (Subset, IndexedDataset):
        return _is_known(dataset.dataset)  # type: ignore[attr-defined]  # its type is known
    if kind.__module__.startswith("torchvision.datasets."):
        return getattr(dataset, "target_transform", None) is None
    return kind in (TensorDataset, TensorData)


def _first_difference(dataset: Dataset) -> int | None:
    """Data-set index of the first probe whose two reads differ; None when all agree."""
    size = sized(dataset)
    probes = min(PROBES, size)
    indices = torch.arange(probes) * (size - 1) // max(probes - 1, 1)
    reads = []
    for seed in (0, 1):
        with other_random_state(seed):
            reads.append([next(batches_of(dataset, 1, indices=index[None]), None) for index in indices])
    pairs = zip(indices.tolist(), *reads, strict=True)
    return next((index for index, first, second in pairs if not _same(first, second)), None)


@contextmanager
def other_random_state(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python; put their states back afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed CUDA, now or when it starts
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _same(a: Any, b: Any) -> bool:
    """Equal in structure and in every value, NaN to NaN included."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return all(_same(x, y) for x, y in itertools.zip_longest(a, b, fillvalue=_same))
    return bool(a == b)
