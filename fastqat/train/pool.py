"""The data of a run: the pool that is trained on and selected from, the validation part held out of it, and the test set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastqat._errors import DataError
from fastqat.data import DataSplits, TensorData, fingerprint, load, stratified_split, stratified_subset, subset
from fastqat.selection.datasets import labels_of
from fastqat.train.batches import RandomCropFlip, TrainSource
from fastqat.train.config import TrainConfig

# The split is the same for every seed, so that runs which share a float model share what it has not seen.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class RunData:
    """`pool` is read without augmentation (scores, pictures), `source` yields the same samples augmented (training).

    `train` is the whole training set, of which `pool` and `val` are parts.
    """

    pool: Dataset
    source: TrainSource
    val: Dataset | None
    train: Dataset
    test: Dataset
    labels: Tensor
    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def augmented(self) -> Dataset:
        """The data set that `source` reads: the pool itself for `TensorData`, whose batches are augmented later."""
        return self.source.dataset


def prepare_data(config: TrainConfig, device: torch.device) -> RunData:
    """Load the data set of `config`, cut it to `limit`, hold out validation, and put it on `device` where it fits.

    Raises:
        DataError: the data set is missing or unusable; see `fastqat.data.load`.
    """
    splits = load(config.data, config.data_root, image_size=config.image_size)
    labels = labels_of(splits.train)
    kept = stratified_subset(labels, config.limit or len(labels), _SPLIT_SEED)
    rest, held = stratified_split(labels[kept], config.val_fraction, _SPLIT_SEED)
    if len(rest) < 2:
        raise DataError(f"{config.data} has {len(rest)} samples left to train on; raise limit or lower val_fraction")
    pool, val = subset(splits.train, kept[rest]), subset(splits.train, kept[held]) if len(held) else None
    test = splits.test
    if isinstance(pool, TensorData):
        pool, test = pool.to(device), splits.test.to(device)  # type: ignore[attr-defined]
        val = val.to(device) if isinstance(val, TensorData) else None
    return RunData(
        pool=pool,
        source=_source(config, splits, pool, kept[rest], device),
        val=val,
        train=splits.train,
        test=test,
        labels=labels[kept[rest]],
        num_classes=splits.num_classes,
        input_shape=splits.input_shape,
        class_names=splits.class_names,
        fingerprint=_fingerprint(pool, splits, config),
    )


def part_of(data: RunData, indices: Tensor, name: str) -> RunData:
    """`data` with the samples of the pool at `indices` only, and nothing held out; `name` tells this part from others."""
    whole = data.source
    source = TrainSource(subset(whole.dataset, indices), augment=whole.augment, workers=whole.workers, device=whole.device)
    pool = source.dataset if whole.dataset is data.pool else subset(data.pool, indices)
    mark = hashlib.sha256(f"{data.fingerprint} {name}".encode()).hexdigest()
    return replace(data, pool=pool, source=source, val=None, labels=data.labels[indices], fingerprint=mark)


def _source(config: TrainConfig, splits: DataSplits, pool: Dataset, indices: Tensor, device: torch.device) -> TrainSource:
    random = config.augment == "auto"
    augment = RandomCropFlip(splits.padding, splits.flip) if random and (splits.padding or splits.flip) else None
    dataset = subset(splits.augmented, indices) if random and splits.augmented is not None else pool
    return TrainSource(dataset, augment=augment, workers=config.workers, device=device)


def _fingerprint(pool: Dataset, splits: DataSplits, config: TrainConfig) -> str:
    """Changes with the pool's content and with how it is augmented or decoded."""
    decoding = "" if isinstance(pool, TensorData) else config.image_size
    facts = f"{fingerprint(pool)} {splits.padding} {splits.flip} {splits.num_classes} {decoding}"
    return hashlib.sha256(facts.encode()).hexdigest()
