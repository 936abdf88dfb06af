"""A data set held as tensors on one device, and what a run needs of any data set: subset, split, fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from fastqat._errors import DataError


class TensorData(Dataset):
    """A labelled data set held as two tensors on one device.

    ``data[i]`` is ``(x, y)`` with x normalised, fp32: ``(raw − mean) / std`` per channel.

    Args:
        x: raw values, uint8 or floating, ``[N, C, ...]``.
        y: labels, int64, ``[N]``.
        mean, std: ``[C]`` in raw units; None takes them from `x`.

    Raises:
        DataError: empty, or `x` and `y` differ in length, or a label is negative.

    Example:
        >>> import torch
        >>> from fastqat.data import TensorData
        >>> data = TensorData(torch.arange(4.0).reshape(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]))
        >>> len(data), data[3][0].shape, [y.tolist() for _, y in data.batches(3)]
        (4, torch.Size([1, 1, 1]), [[0, 1, 0], [1]])
    """

    def __init__(self, x: Tensor, y: Tensor, mean: Tensor | None = None, std: Tensor | None = None):
        if len(x) == 0 or len(x) != len(y):
            raise DataError(f"a data set needs samples and one label for each; got {len(x)} samples and {len(y)} labels")
        if int(y.min()) < 0:
            raise DataError(f"labels must count from 0; got {int(y.min())}")
        self.x, self.y = x, y.long()
        moments = channel_moments(x) if mean is None or std is None else (mean, std)
        self.mean, self.std = (m.to(x.device, torch.float32) for m in moments)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.normalise(self.x[i][None])[0], self.y[i]

    def normalise(self, raw: Tensor) -> Tensor:
        """``(raw − mean) / std``: raw ``[B, C, ...]`` → fp32 of the same shape and memory format."""
        shape = (1, -1) + (1,) * (raw.dim() - 2)
        return torch.sub(raw, self.mean.view(shape)).div_(self.std.view(shape))

    def batches(self, batch_size: int, indices: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised ``(x, y)`` on this data's device, in the order of `indices` (None: data-set order)."""
        if indices is None:
            for start in range(0, len(self), batch_size):
                yield self.normalise(self.x[start : start + batch_size]), self.y[start : start + batch_size]
            return
        for part in indices.to(self.x.device).split(batch_size):
            yield self.normalise(self.x[part]), self.y[part]

    def to(self, device: str | torch.device) -> TensorData:
        """The same data on `device`."""
        return TensorData(self.x.to(device), self.y.to(device), self.mean, self.std)

    def subset(self, indices: Tensor | Sequence[int]) -> TensorData:
        """The samples at `indices`, normalised as the whole."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.x.device)
        return TensorData(self.x[index], self.y[index], self.mean, self.std)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of raw values ``[N, C, ...]``, as fp32 ``[C]``; a constant channel has std 1."""
    means, stds = [], []
    for channel in x.transpose(0, 1).flatten(1):
        if x.dtype == torch.uint8:
            counts, values = torch.bincount(channel, minlength=256).double(), torch.arange(256.0, dtype=torch.float64, device=x.device)
        else:
            counts, values = torch.ones(channel.shape, dtype=torch.float64, device=x.device), channel.double()
        mean = (counts * values).sum() / counts.sum()
        means.append(mean)
        stds.append(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())
    std = torch.stack(stds).float()
    return torch.stack(means).float(), torch.where(std > 0, std, torch.ones_like(std))


def subset(self, indices: Tensor | Sequence[int]) -> TensorData:
        """The samples at `indices`, normalised as the whole."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.x.device)
        return TensorData(self.x[index], self.y[index], self.mean, self.std)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of raw values ``[N, C, ...]``, as fp32 ``[C]``; a constant channel has std 1."""
    means, stds = [], []
    for channel in x.transpose(0, 1).flatten(1):
        if x.dtype == torch.uint8:
            counts, values = torch.bincount(channel, minlength=256).double(), torch.arange(256.0, dtype=torch.float64, device=x.device)
        else:
            counts, values = torch.ones(channel.shape, dtype=torch.float64, device=x.device), channel.double()
        mean = (counts * values).sum() / counts.sum()
        means.append(mean)
        stds.append(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())
    std = torch.stack(stds).float()
    return torch.stack(means).float(), torch.where(std > 0, std, torch.ones_like(std))


def labels_of(dataset: Any) -> Tensor:
    """Labels ``[N]`` of a data set, without reading its samples where it knows them (``.y`` or ``.targets``)."""
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(dataset.indices)]
    known = getattr(dataset, "y", getattr(dataset, "targets", None))
    return torch.as_tensor(known if known is not None else [int(y) for _, y in dataset], dtype=torch.long).cpu()


def subset(dataset: Any, indices: Tensor) -> Any:
    """The samples of `dataset` at `indices`, on its device where it is `TensorData`."""
    return dataset.subset(indices) if isinstance(dataset, TensorData) else Subset(dataset, indices.tolist())


def fingerprint(dataset: Any) -> str:
    """A hash that changes with the content: of the values for `TensorData`, of file names, sizes and labels for folders."""
    digest = hashlib.sha256()
    if isinstance(dataset, TensorData):
        for tensor in (dataset.x, dataset.y, dataset.mean, dataset.std):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()))
    elif isinstance(dataset, Subset):
        digest.update((fingerprint(dataset.dataset) + str(list(dataset.indices))).encode())
    else:
        for path, label in dataset.samples:
            digest.update(f"{Path(path).name}:{os.path.getsize(path)}:{label};".encode())
    return digest.hexdigest()


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``0..N−1`` into (rest, held): ``round(fraction · n_c)`` samples of each class c are held; both sorted."""
    generator = torch.Generator().manual_seed(seed)
    held = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        held.append(shuffled[: round(fraction * len(members))])
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[torch.cat(held)] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()
