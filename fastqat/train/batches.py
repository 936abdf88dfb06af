"""Training batches that are a pure function of (seed, epoch): order, random crop and flip, on the data's device.

With several processes a batch is that of all of them: each takes its part of it, and a sample gets the crop that it gets in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastqat._distributed import World, world
from fastqat.data import TensorData


class TrainBatch(NamedTuple):
    """This process's part of a batch: `x` and `y` on the device, `indices` int64 ``[B]`` on the CPU, the samples' places in the data set.

    ``share · mean loss``, averaged over the processes, is the mean loss of the whole batch. `share` is 1 in one process, and 0 where a
    batch is too small for all processes and this one repeats another's samples.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    share: float = 1.0


def part_of(samples: int, here: World) -> tuple[slice, float]:
    """Which of the `samples` of a batch process `here` takes, and its share: consecutive ones, at least two, because batch norm needs two.

    Process r of W takes B_r of B samples, so that share_r = B_r·W/B and (1/W) Σ_r share_r · mean_r = the mean over B.

    Example:
        >>> part_of(7, World(0, 2)), part_of(7, World(1, 2))
        ((slice(0, 3, None), 0.8571428571428571), (slice(3, 7, None), 1.1428571428571428))
        >>> part_of(3, World(1, 2))
        (slice(0, 3, None), 0.0)
    """
    active = max(1, min(here.size, samples // 2))
    rank = here.rank if here.rank < active else 0
    start, stop = samples * rank // active, samples * (rank + 1) // active
    return slice(start, stop), (stop - start) * here.size / samples if here.rank < active else 0.0


def split_order(order: Tensor, batch_size: int) -> list[Tensor]:
    """`order` cut into batches; a last batch of one sample joins the one before it, because batch norm needs two."""
    parts = list(order.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Number of batches that `split_order` makes of `samples`."""
    return len(split_order(torch.arange(samples), batch_size))


class RandomCropFlip:
    """Crops at a random offset of the zero-padded picture, and mirrors half of them, for whole batches on any device.

    Args:
        padding: pixels added on each side before a crop of the original size.
        flip: mirror left to right with probability ½.
    """

    def __init__(self, padding: int, flip: bool):
        self.padding, self.flip = padding, flip

    def draw(self, samples: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Offsets and flips of `samples` pictures: int64 ``[3, samples]`` (top, left, mirrored), one copy to `device` per epoch."""
        offsets = torch.randint(0, 2 * self.padding + 1, (2, samples), generator=generator)
        mirrored = torch.randint(0, 2, (1, samples), generator=generator) if self.flip else torch.zeros(1, samples, dtype=torch.long)
        return torch.cat([offsets, mirrored]).to(device)

    def __call__(self, x: Tensor, drawn: Tensor) -> Tensor:
        """x ``[B, C, H, W]``, drawn ``[3, B]`` → pictures of the same shape and dtype, channels-last in memory."""
        top, left, mirrored = drawn
        pictures = x.permute(0, 2, 3, 1).contiguous()
        if self.padding:
            pictures = self._crop(pictures, top, left)
        if self.flip:
            pictures = torch.where(mirrored[:, None, None, None] == 1, pictures.flip(2), pictures)
        return pictures.permute(0, 3, 1, 2)

    def _crop(self, pictures: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """pictures ``[B, H, W, C]``: every row of a crop is one run of W·C values of the padded batch, so this is one gather of runs."""
        batch, height, width, channels = pictures.shape
        padded = F.pad(pictures, (0, 0) + (self.padding,) * 4)
        rows, columns = padded.shape[1:3]
        starts = (batch * rows - 1) * columns + 2 * self.padding + 1
        runs = padded.as_strided((starts, width * channels), (channels, 1))
        row = (torch.arange(batch, device=top.device) * rows + top)[:, None] + torch.arange(height, device=top.device)
        return runs[(row * columns + left[:, None]).flatten()].view(pictures.shape)


class TrainSource:
    """Yields the augmented batches of an epoch from `TensorData` or, through a `DataLoader`, from any data set.

    Args:
        dataset: `TensorData`, or a data set whose transforms augment already.
        augment: for `TensorData`; None leaves pictures as they are.
        workers: processes of the loader.
        device: where the batches go.
    """

    def __init__(self, dataset: Dataset, *, augment: RandomCropFlip | None, workers: int, device: torch.device):
        self.dataset, self.augment, self.workers, self.device = dataset, augment, workers, device

    def batches(self, order: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[TrainBatch]:
        """This process's part of each batch of `batch_size` samples in `order`; `generator` decides the augmentation."""
        parts = split_order(order, batch_size)
        reading = self._on_device if isinstance(self.dataset, TensorData) else self._through_loader
        for (x, y), part in zip(reading(parts, generator), parts, strict=True):
            rows, share = part_of(len(part), world())
            yield TrainBatch(x, y, part[rows], share)

    def _through_loader(self, parts: list[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        seed, start = int(torch.randint(2**62, (), generator=generator)), 0
        places = []
        for part in parts:
            rows, _ = part_of(len(part), world())
            places.append([(start + rows.start + i, int(index)) for i, index in enumerate(part[rows])])
            start += len(part)
        loader: Any = DataLoader(
            _SeededPerSample(self.dataset, seed),
            batch_sampler=places,
            num_workers=self.workers,
            generator=generator,
            pin_memory=self.device.type == "cuda",
        )
        for x, y in loader:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _on_device(self, parts: list[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        data, sizes = self.dataset, [len(part) for part in parts]
        assert isinstance(data, TensorData)
        order = torch.cat(parts).to(self.device)
        drawn = self.augment.draw(len(order), generator, self.device) if self.augment else torch.zeros(3, len(order), device=self.device)
        for whole, crops in zip(order.split(sizes), drawn.split(sizes, dim=1), strict=True):
            rows, _ = part_of(len(whole), world())
            index = whole[rows]
            x = data.raw(index)
            yield data.normalise(self.augment(x, crops[:, rows]) if self.augment else x), data.y[index]


class _SeededPerSample(Dataset):
    """Reads `dataset` at ``(place, index)`` with torch's generator seeded from `seed` and the place in the epoch's order.

    So what the transforms draw for a sample depends neither on the number of loader workers nor on that of processes.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, Any]:
        place, index = key
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(self.seed + place)
            x, y = self.dataset[index][:2]
        return x, y
