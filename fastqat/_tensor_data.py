"""A data set held as tensors on one device, and what a run needs of any data set: subset, split, fingerprint."""

from __future__ import annotations

import hashlib
import math
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
        moments = channel_moments(x) if mean is None or std is None else (mean, std)
        self.x, self.y = _channels_inside(x), y.long()
        self.mean, self.std = (m.to(x.device, torch.float32) for m in moments)
        # One value per element of a sample in memory order: long rows for the inner loops of `normalise`.
        positions = math.prod(x.shape[2:])
        spread = torch.Tensor.repeat if x.dim() == 4 else torch.Tensor.repeat_interleave
        self._mean_row, self._std_row = spread(self.mean, positions), spread(self.std, positions)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.normalise(self.x[i][None])[0], self.y[i]

    def raw(self, indices: Tensor) -> Tensor:
        """Raw values ``[B, C, ...]`` of the samples at `indices`; pictures are channels-last in memory."""
        if self.x.dim() != 4:
            return self.x.index_select(0, indices)
        return self.x.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)

    def normalise(self, raw: Tensor) -> Tensor:
        """``(raw − mean) / std``: raw ``[B, C, ...]`` → fp32 of the same shape; pictures are channels-last in memory."""
        rows = raw.permute(0, 2, 3, 1) if raw.dim() == 4 else raw
        out = torch.sub(rows.flatten(1), self._mean_row).div_(self._std_row).view(rows.shape)
        return out.permute(0, 3, 1, 2) if raw.dim() == 4 else out

    def batches(self, batch_size: int, indices: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised ``(x, y)`` on this data's device, in the order of `indices` (None: data-set order)."""
        if indices is None:
            for x, y in zip(self.x.split(batch_size), self.y.split(batch_size), strict=True):
                yield self.normalise(x), y
            return
        for part in indices.to(self.x.device).split(batch_size):
            yield self.normalise(self.raw(part)), self.y[part]

    def to(self, device: str | torch.device) -> TensorData:
        """The same data on `device`."""
        return TensorData(self.x.to(device), self.y.to(device), self.mean, self.std)

    def subset(self, indices: Tensor | Sequence[int]) -> TensorData:
        """The samples at `indices`, normalised as the whole."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.x.device)
        return TensorData(self.raw(index), self.y[index], self.mean, self.std)


def _channels_inside(x: Tensor) -> Tensor:
    """Pictures ``[N, C, H, W]`` channels-last in memory: a gathered batch then needs no transposition; other shapes as they are."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if x.dim() == 4 else x.contiguous()


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


class Relabelled(Dataset):
    """A data set with other labels: ``data[i]`` is x of sample i of `dataset` and ``labels[i]``. `relabelled` makes it."""

    def __init__(self, dataset: Any, labels: Tensor):
        self.dataset, self.targets = dataset, labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.dataset[i][0], int(self.targets[i])


def relabelled(dataset: Any, labels: Tensor) -> Any:
    """`dataset` with `labels`, int64 ``[N]``, in place of its own; the samples are shared, and `dataset` keeps its labels."""
    if isinstance(dataset, TensorData):
        return TensorData(dataset.x, labels.to(dataset.x.device), dataset.mean, dataset.std)
    return Relabelled(dataset, labels)


def subset(dataset: Any, indices: Tensor) -> Any:
    """The samples of `dataset` at `indices`, on its device where it is `TensorData`."""
    return dataset.subset(indices) if isinstance(dataset, TensorData) else Subset(dataset, indices.tolist())


def fingerprint(dataset: Any) -> str:
    """A hash that changes with the content: of the values for `TensorData`, of file names, sizes and labels for folders."""
    digest = hashlib.sha256()
    if isinstance(dataset, TensorData):
        memory_order = dataset.x.permute(0, 2, 3, 1) if dataset.x.dim() == 4 else dataset.x
        for tensor in (memory_order, dataset.y, dataset.mean, dataset.std):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    elif isinstance(dataset, Subset):
        digest.update((fingerprint(dataset.dataset) + str(list(dataset.indices))).encode())
    elif isinstance(dataset, Relabelled):
        digest.update(fingerprint(dataset.dataset).encode() + dataset.targets.numpy().tobytes())
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


def group_split(labels: Tensor, groups: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """As `stratified_split` with whole groups: of each class as many, drawn at random, as come nearest to ``fraction · n_c`` samples.

    Where a group has samples of several classes, the nearest to ``fraction · N`` samples of all. At least one group is held when
    `fraction` is above 0, and one is always left.
    """
    names, member = groups.unique(return_inverse=True)
    lowest, highest = (torch.zeros_like(names).scatter_reduce(0, member, labels, how, include_self=False) for how in ("amin", "amax"))
    kinds = lowest if torch.equal(lowest, highest) else torch.zeros_like(lowest)
    sizes, generator = member.bincount(), torch.Generator().manual_seed(seed)
    held = torch.zeros(len(names), dtype=torch.bool)
    for kind in kinds.unique():
        order = (kinds == kind).nonzero().flatten()
        order = order[torch.randperm(len(order), generator=generator)]
        reached = torch.cat([torch.zeros(1), sizes[order].cumsum(0)])
        held[order[: int((reached - fraction * reached[-1]).abs().argmin())]] = True
    if fraction > 0 and not held.any():
        held[int(sizes.argmin())] = True
    if held.all():
        held[int(sizes.argmax())] = False
    return (~held[member]).nonzero().flatten(), held[member].nonzero().flatten()


def stratified_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """`size` of ``0..N−1``, sorted: ``size · n_c / N`` of each class c, rounded down, and one more where the remainders are largest."""
    if size >= len(labels):
        return torch.arange(len(labels))
    generator = torch.Generator().manual_seed(seed)
    names, counts = labels.unique(return_counts=True)
    quotas, remainders = size * counts // len(labels), size * counts % len(labels)
    quotas[remainders.argsort(descending=True, stable=True)[: size - int(quotas.sum())]] += 1
    chosen = []
    for label, quota in zip(names, quotas.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:quota]])
    return torch.cat(chosen).sort().values
