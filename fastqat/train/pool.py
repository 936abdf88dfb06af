"""The data of a run: the pool that is trained on and selected from, the validation part held out of it, and the test set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastqat._errors import DataError
from fastqat.data import DataSplits, TensorData, fingerprint, group_split, load, relabelled, stratified_split, stratified_subset, subset
from fastqat.selection.datasets import labels_of
from fastqat.train.batches import RandomCropFlip, TrainSource
from fastqat.train.config import TrainConfig
from fastqat.train.label_noise import with_wrong_labels

# The split is the same for every seed, so that runs which share a float model share what it has not seen.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class RunData:
    """`pool` is read without augmentation (scores, pictures), `source` yields the same samples augmented (training).

    `train` is the whole training set, of which `pool` and `val` are parts. Under label noise all three have the noisy labels, `wrong`
    tells which of the pool's were replaced, bool ``[N]``, and `clean` is the same data with its own labels, for an oracle teacher.
    `float_accuracy` keeps what float weights reach on `test`, for further runs on the same data in one process.
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
    wrong: Tensor | None = None
    clean: RunData | None = None
    float_accuracy: dict[Any, float] = field(default_factory=dict, compare=False)

    @property
    def augmented(self) -> Dataset:
        """The data set that `source` reads: the pool itself for `TensorData`, whose batches are augmented later."""
        return self.source.dataset


def prepare_data(config: TrainConfig, device: torch.device) -> RunData:
    """Load the data set of `config`, cut it to `limit`, hold out validation, put it on `device` where it fits, and put in label noise.

    Raises:
        DataError: the data set is missing or unusable; see `fastqat.data.load`.
        InputError: label noise for a data set of one class.
    """
    splits = load(config.data, config.data_root, image_size=config.image_size)
    labels = labels_of(splits.train)
    kept = stratified_subset(labels, config.limit or len(labels), _SPLIT_SEED)
    rest, held = _split(labels[kept], None if splits.groups is None else splits.groups[kept], config.val_fraction)
    if len(rest) < 2:
        raise DataError(f"{config.data} has {len(rest)} samples left to train on; raise limit or lower val_fraction")
    pool, val = subset(splits.train, kept[rest]), subset(splits.train, kept[held]) if len(held) else None
    test = splits.test
    if isinstance(pool, TensorData):
        pool, test = pool.to(device), splits.test.to(device)  # type: ignore[attr-defined]
        val = val.to(device) if isinstance(val, TensorData) else None
    data = RunData(
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
    return _with_noise(config, data, kept[rest], kept[held]) if config.label_noise else data


def _with_noise(config: TrainConfig, data: RunData, pool: Tensor, val: Tensor) -> RunData:
    """`data` with wrong labels: the exact share of each class of the pool, of the validation part and of what `limit` left out."""
    given = labels_of(data.train)
    unused = torch.ones(len(given), dtype=torch.bool)
    unused[torch.cat([pool, val])] = False
    parts = (pool, val, unused.nonzero().flatten())
    seed = config.used_float_seed  # runs that share a float model share its labels
    labels = with_wrong_labels(given, config.label_noise, config.label_noise_type, data.num_classes, seed, parts)
    noisy, old = relabelled(data.pool, labels[pool]), data.source
    dataset = noisy if old.dataset is data.pool else relabelled(old.dataset, labels[pool])
    return replace(
        data,
        pool=noisy,
        source=TrainSource(dataset, augment=old.augment, workers=old.workers, device=old.device),
        val=None if data.val is None else relabelled(data.val, labels[val]),
        train=relabelled(data.train, labels),
        labels=labels[pool],
        fingerprint=hashlib.sha256(data.fingerprint.encode() + labels[pool].numpy().tobytes()).hexdigest(),
        wrong=labels[pool] != given[pool],
        clean=data,
    )


def _split(labels: Tensor, groups: Tensor | None, fraction: float) -> tuple[Tensor, Tensor]:
    """(rest, held for validation); samples of one group stay together, because they may overlap."""
    if groups is None or fraction == 0:
        return stratified_split(labels, fraction, _SPLIT_SEED)
    return group_split(labels, groups, fraction, _SPLIT_SEED)


def part_of(data: RunData, indices: Tensor, name: str) -> RunData:
    """`data` with the samples of the pool at `indices` only, and nothing held out; `name` tells this part from others."""
    whole = data.source
    source = TrainSource(subset(whole.dataset, indices), augment=whole.augment, workers=whole.workers, device=whole.device)
    pool = source.dataset if whole.dataset is data.pool else subset(data.pool, indices)
    mark = hashlib.sha256(f"{data.fingerprint} {name}".encode()).hexdigest()
    wrong = None if data.wrong is None else data.wrong[indices]
    return replace(data, pool=pool, source=source, val=None, labels=data.labels[indices], fingerprint=mark, wrong=wrong, clean=None)


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
