"""Training batches that are a pure function of (seed, epoch): order, random crop and flip, on the data's device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastqat.data import TensorData


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

    def batches(self, order: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """``(x, y)`` on the device in `order`; `generator` decides the augmentation."""
        parts = split_order(order, batch_size)
        if isinstance(self.dataset, TensorData):
            yield from self._on_device(self.dataset, parts, generator)
            return
        loader: Any = DataLoader(
            self.dataset,
            batch_sampler=[part.tolist() for part in parts],
            num_workers=self.workers,
            generator=generator,
            pin_memory=self.device.type == "cuda",
        )
        for x, y in loader:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _on_device(self, data: TensorData, parts: list[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        sizes = [len(part) for part in parts]
        order = torch.cat(parts).to(self.device)
        drawn = self.augment.draw(len(order), generator, self.device) if self.augment else torch.zeros(3, len(order), device=self.device)
        for index, crops in zip(order.split(sizes), drawn.split(sizes, dim=1), strict=True):
            x = data.raw(index)
            yield data.normalise(self.augment(x, crops) if self.augment else x), data.y[index]
