"""Everything that training a detector depends on, in one dataclass: fields, flags and YAML keys, as in `fastqat.train.config`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastqat._errors import InputError
from fastqat.train.config import FREE_ON_RESUME, checked, read_mapping, yaml_of
from fastqat.train.detection.models import DETECTORS
from fastqat.train.run_names import with_digest


@dataclass(frozen=True)
class DetectorFlags:
    """Train a RetinaNet, quantize it, and train it on with the pictures that selection picks."""

    config: Path | None = None
    """YAML file with settings, such as the config.yaml of a run; flags win over it."""
    data: Path = Path("coco")
    """Folder in COCO's layout: annotations/instances_SPLIT.json, and the pictures in SPLIT/."""
    train_split: str = "train2017"
    """Split to train on and to select from."""
    val_split: str | None = "val2017"
    """Split to measure average precision on (needs pycocotools); None: none."""
    limit: int | None = None
    """Use at most N training pictures (to try things out)."""
    val_limit: int | None = None
    """Measure average precision on at most N pictures; those that choose the best checkpoint, too."""
    workers: int = 2
    """Processes that decode pictures."""
    flip: bool = True
    """Mirror every picture with probability 1/2 in training."""

    model: str = "retinanet_resnet50_fpn"
    """retinanet_tiny, or retinanet_NAME_fpn on resnet18, resnet34, resnet50, resnet101 or resnet152."""
    min_size: int = 800
    """Pictures are scaled to this shorter side ..."""
    max_size: int = 1333
    """... or to this longer side, if that makes them smaller."""
    frozen_norm: bool = False
    """Normalise by fixed statistics, as weights trained elsewhere want; otherwise batch norm."""
    trainable_layers: int = 5
    """How many of the five parts of the ResNet learn, from the last; 3 is usual for weights trained elsewhere, with frozen_norm."""
    float_checkpoint: Path | None = None
    """Start from these float weights (a state_dict saved by torch.save, or checkpoints/float.pt of a run) instead of training them."""
    float_epochs: int = 12
    """Epochs of float training on all pictures."""
    float_lr: float = 0.01
    """Learning rate at the start of float training."""

    qconfig: str = "w4a4"
    """Bits of weights and activations, as in fastqat.quantize; none: float. The first layer and the two outputs stay float."""
    calibration_pictures: int = 64
    """Pictures from which the ranges of activations are found."""
    select: Literal["none", "random", "rs2", "acs", "evs", "ds"] = "acs"
    """Which pictures to train on: none (all), random (a new draw every INTERVAL epochs), rs2 (every epoch), acs, or the largest of one
    score."""
    fraction: float = 0.1
    """Share of the pictures that is selected; not by class, since a picture has boxes of several."""
    interval: int | None = 10
    """Epochs between two selections; None: one selection that stays."""
    schedule: Literal["cosine", "half_cosine", "linear", "sqrt", "quadratic", "constant"] = "cosine"
    """How the weight of EVS falls in ACS."""
    first_select: Literal["scores", "random"] = "scores"
    """random: draw the first subset instead of trusting a model that was quantized a moment ago."""
    bn_reestimate: int = 0
    """Batches of random pictures that renew the batch-norm statistics before scoring and after the last epoch; 0: off."""

    loss: Literal["labels", "kd"] = "labels"
    """labels: RetinaNet's focal loss and box loss; kd: learn from the float model in place of the labels."""
    epochs: int = 12
    """Epochs of quantization-aware training."""
    batch_size: int = 8
    """Pictures per step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with Nesterov momentum, or Adam."""
    lr: float = 1e-3
    """Learning rate at the start; it falls to 0 by a cosine."""
    scale_lr: float | None = None
    """Learning rate of the step sizes; default: LR."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises in float training; at most an epoch."""
    max_grad_norm: float | None = None
    """Scale gradients down to this norm, in both trainings; None: leave them."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    """Of the weights."""
    val_interval: int = 1
    """Measure average precision every N epochs, and after the last."""
    amp: bool = False
    """Run backbone and heads in bfloat16 by autocast."""

    seed: int = 0
    """Seed of everything."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, ..."""
    threads: int | None = None
    """CPU threads; default: torch's."""
    name: str | None = None
    """Name of the run; default: made from the settings."""
    runs: Path = Path("runs")
    """Folder of the run directories."""
    resume: bool = False
    """Go on with the run of that name where it stopped."""
    overwrite: bool = False
    """Replace the run of that name."""
    progress: bool = True
    """Show progress bars on a terminal."""


@dataclass(frozen=True)
class DetectorConfig(DetectorFlags):
    """The settings of a detector's run, checked.

    Raises:
        InputError: a value of another type or out of range.

    Example:
        >>> DetectorConfig(data="coco", select="acs", loss="kd").run_name
        'coco-retinanet_resnet50_fpn-w4a4-acs10-kd-seed0'
    """

    def __post_init__(self) -> None:
        for name, value in checked(dataclasses.asdict(self), kind=DetectorConfig).items():
            object.__setattr__(self, name, value)
        _check_values(self)

    @property
    def run_name(self) -> str:
        """`name`, or one made from the settings that runs differ in most, with a hash where others are not the defaults either."""
        if self.name:
            return self.name
        chosen = self.select if self.select == "none" else f"{self.select}{100 * self.fraction:g}"
        qconfig = self.qconfig.replace(":", "-")
        words = f"{self.data.stem or 'coco'}-{self.model}-{qconfig}-{chosen}-{self.loss}-seed{self.seed}"
        told = {"model", "qconfig", "select", "fraction", "loss", "seed", *(["data"] if str(self.data) == self.data.stem else [])}
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name not in FREE_ON_RESUME | told}
        changed = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        return with_digest(words, changed) if changed else words

    @property
    def run_dir(self) -> Path:
        return self.runs / self.run_name

    def saved(self) -> DetectorConfig:
        """The settings that a run keeps: without its name and what was asked of this start only."""
        return dataclasses.replace(self, config=None, name=None, resume=False, overwrite=False)

    def to_yaml(self) -> str:
        """The settings as YAML text; `from_yaml` reads it back."""
        return yaml_of(self)

    @classmethod
    def from_yaml(cls, path: Path) -> DetectorConfig:
        """Settings from a YAML mapping; what it does not name has its default.

        Raises:
            InputError: no such file, not a mapping, an unknown key, or a value of another type or out of range.
        """
        return cls(**checked(read_mapping(path), source=f"{path}: ", kind=cls))


def _check_values(config: DetectorConfig) -> None:
    """Raise InputError for a value that no run can have."""
    at_least = {"limit": 1, "val_limit": 1, "workers": 0, "min_size": 1, "trainable_layers": 0, "float_epochs": 0,
                "calibration_pictures": 1, "bn_reestimate": 0,
                "interval": 1, "epochs": 0, "batch_size": 1, "warmup_steps": 0, "val_interval": 1, "seed": 0, "threads": 1}  # fmt: skip
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}; got {value}")
    for name in ("float_lr", "lr", "scale_lr", "weight_decay", "momentum"):
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be a finite number of at least 0; got {value}")
    if config.momentum >= 1 or not 0 < config.fraction <= 1:
        raise InputError(f"momentum must be less than 1 and fraction in (0, 1]; got {config.momentum} and {config.fraction}")
    if config.max_grad_norm is not None and not config.max_grad_norm > 0:
        raise InputError(f"max_grad_norm must be positive; got {config.max_grad_norm}")
    if config.min_size > config.max_size:
        raise InputError(f"min_size must be at most max_size; got {config.min_size} and {config.max_size}")
    if config.model not in DETECTORS:
        raise InputError(f"model must be one of {', '.join(DETECTORS)}; got {config.model!r}")
    if config.resume and config.overwrite:
        raise InputError("resume keeps a run and overwrite deletes it; give one of them")
