"""Everything a training run depends on, in one dataclass: its fields are the flags of ``fastqat train`` and the keys of its YAML."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from fastqat._errors import InputError
from fastqat.selection.selectors import list_selectors
from fastqat.train.setting_types import OWN_POLICIES, ScoreName, SelectName, of_type, options_text

# What may differ between a run and its resumption: nothing here changes a weight.
FREE_ON_RESUME = frozenset({"config", "data_root", "name", "runs", "resume", "overwrite", "progress", "report", "threads"})
# What the float model depends on, beside the content of the training pool; `float_seed` stands for `seed`.
FLOAT_FIELDS = (
    "model",
    "float_epochs",
    "float_lr",
    "float_batch_size",
    "optimizer",
    "momentum",
    "weight_decay",
    "augment",
    "amp",
    "channels_last",
)


@dataclass(frozen=True)
class TrainFlags:
    """Train a float model, quantize it, and train it on with a chosen part of the data."""

    config: Path | None = None
    """YAML file with any of these settings; flags override it."""
    data: str = "digits"
    """digits, fashion-mnist, cifar10, cifar100, imagefolder:PATH or npz:PATH."""
    data_root: Path | None = None
    """Folder of the named data sets. Default: environment FASTQAT_DATA, else ~/.cache/fastqat/data."""
    val_fraction: float = 0.1
    """Share of each class of the training set that is held out to choose the best checkpoint; 0 for none."""
    limit: int | None = None
    """Use only N training samples, the same share of each class (to try things out)."""
    augment: Literal["auto", "none"] = "auto"
    """auto: random crop and flip where the data set has them; none: the pictures as they are."""
    image_size: int = 224
    """Side of the pictures of imagefolder."""
    workers: int = 2
    """Processes that decode pictures of imagefolder; sets that fit into memory need none."""

    model: str = "resnet8"
    """resnet8, resnet20, resnet32, mobilenet_v2_half, or a classification model of torchvision by name."""
    float_checkpoint: Path | None = None
    """Start from these float weights (a state_dict saved by torch.save) instead of training them."""
    float_epochs: int = 20
    """Epochs of float training on the whole pool; the result is cached under RUNS/.float and shared by all runs that agree."""
    float_lr: float = 0.1
    """Learning rate at the start of float training."""
    float_batch_size: int = 128
    """Samples per step of float training, dealt to all processes of torchrun."""
    float_seed: int | None = None
    """Seed of float training; default: the run's seed."""

    qconfig: str = "w2a32"
    """Bits of weights and activations (w4a4, w2a32); :channel one scale per output channel, :group64 one per 64 inputs; none: float."""
    grad_factor: Literal["paper", "per_scale", "range", "none"] = "paper"
    """Factor of the step sizes' gradients, for N weights of a layer or features of a sample: paper 1/sqrt(N qmax); range 1/sqrt(N (qmax -
    qmin)); per_scale as paper with the batch counted in N, as the released code of ACS does; none 1."""
    select: SelectName = "none"
    """Which samples to train on: none (all), random (a new draw every INTERVAL epochs), rs2 (every epoch), acs, or a selector by name."""
    fraction: float = 0.1
    """Share of the pool that is selected."""
    interval: int | None = 10
    """Epochs between two selections; None: one selection that stays."""
    score: ScoreName = "evs"
    """What a selector goes by, where it goes by scores; acs has its own."""
    features: str | None = None
    """What a selector compares samples by: embedding, error, gradient, scale_grads, probabilities, or the name of a module."""
    select_options: str = "{}"
    """Options of the selector, such as '{"strata": 20}'; in YAML also a mapping."""
    select_warmup: int = 0
    """Epochs at the start that train on all samples, before the first selection by scores."""
    select_anneal: int = 0
    """Epochs at the end that train on all samples."""
    score_source: Literal["pass", "train"] = "pass"
    """pass: a pass over the pool before each selection; train: the training forward gives the scores of the samples that it has seen."""
    score_max_age: int | None = 1
    """How many epochs old scores of the training forward may be; older ones come from a pass; None: any age, and no pass for them."""
    schedule: Literal["cosine", "half_cosine", "linear", "sqrt", "quadratic", "constant"] = "cosine"
    """How the weight of the error vector score falls in acs; half_cosine is that of its released code."""
    balanced: bool = True
    """Select the same share of each class."""
    first_select: Literal["scores", "random"] = "scores"
    """What selections by scores start from in epoch 0, when quantization has just shaken the model."""
    bn_reestimate: int = 0
    """Batches of random samples that renew the batch-norm statistics before scoring and after the last epoch; 0: off."""

    loss: Literal["ce", "kd"] = "ce"
    """ce: cross-entropy to the labels; kd: to the outputs of the float model."""
    epochs: int = 20
    """Epochs of quantization-aware training."""
    batch_size: int = 128
    """Samples per step, dealt to all processes of torchrun."""
    sync_bn: bool = False
    """With several processes, each on its GPU: batch norm normalises by the whole batch instead of each process's part of it."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd with Nesterov momentum, or adam."""
    lr: float = 0.01
    """Learning rate at the start; it falls to 0 along a cosine, step by step."""
    scale_lr: float | None = None
    """Learning rate of the quantizers' step sizes; default: the same."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """Decay of weights; never of step sizes, norms and biases."""
    amp: bool = False
    """bfloat16 autocast."""
    channels_last: bool = True
    """Channels-last memory layout: about a third faster on CPUs for these nets."""
    val_interval: int = 1
    """Validate every N epochs, and after the last."""

    seed: int = 0
    """Seed of orders, draws and augmentation; the same seed, thread and process count and machine give the same bits. With another number
    of processes the weights differ a little (batch norm sees parts of batches), and so do selections by scores."""
    threads: int | None = None
    """CPU threads of each process; default: torch's."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:1, ...; under torchrun auto and cuda give each process a GPU of its own."""
    name: str | None = None
    """Name of the run directory, a single folder name; default: made from the settings."""
    runs: Path = Path("runs")
    """Folder of the run directories."""
    resume: bool = False
    """Go on where the run of this name stopped (with --name, its own settings are the defaults); starts it when there is none."""
    overwrite: bool = False
    """Delete a run of the same name first."""
    report: bool = True
    """Write report.html at the end."""
    progress: bool = True
    """Show progress bars on a terminal."""


@dataclass(frozen=True)
class TrainConfig(TrainFlags):
    """The settings of a run, checked.

    Raises:
        InputError: a value of another type or out of range.

    Example:
        >>> TrainConfig(data="cifar10", select="acs", fraction=0.05).run_name
        'cifar10-resnet8-w2a32-acs5-ce-seed0'
    """

    def __post_init__(self) -> None:
        for name, value in checked(dataclasses.asdict(self)).items():
            object.__setattr__(self, name, value)
        _check_values(self)

    @property
    def run_name(self) -> str:
        """`name`, or one made from the settings that runs differ in most."""
        data = self.data.partition(":")[0] if ":" not in self.data else Path(self.data.partition(":")[2]).stem
        chosen = self.select if self.select == "none" else f"{self._selection_name()}{100 * self.fraction:g}"
        qconfig = self.qconfig.replace(":", "-")
        return self.name or f"{data}-{self.model}-{qconfig}-{chosen}-{self.loss}-seed{self.seed}"

    @property
    def used_score(self) -> str | None:
        """`score` where the selector goes by it, else None."""
        return self.score if self.select not in OWN_POLICIES and "scores" in list_selectors()[self.select].needs else None

    def _selection_name(self) -> str:
        """The selection, with what distinguishes it from others of that name."""
        parts = [self.select, self.used_score] if self.used_score else [self.select]
        if self.select not in OWN_POLICIES:
            parts += [self.features.replace(".", "_")] if self.features else []
        parts += ["static"] if self.interval is None and self.select not in ("none", "rs2") else []
        return "-".join([*parts, "train"] if self.score_source == "train" else parts)

    @property
    def selector_options(self) -> dict[str, Any]:
        """`select_options` as a mapping."""
        return json.loads(self.select_options)

    @property
    def run_dir(self) -> Path:
        return self.runs / self.run_name

    def saved(self) -> TrainConfig:
        """The settings that a run keeps: without its name and what was asked of this start only, so that they start other runs too."""
        return dataclasses.replace(self, config=None, name=None, resume=False, overwrite=False)

    def to_yaml(self) -> str:
        """The settings as YAML text, in the order of the fields; `from_yaml` reads it back."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(self).items()}
        return yaml.safe_dump(plain, sort_keys=False)

    @classmethod
    def from_yaml(cls, path: Path) -> TrainConfig:
        """Settings from a YAML mapping; what it does not name has its default.

        Raises:
            InputError: no such file, not a mapping, an unknown key, or a value of another type or out of range.
        """
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"cannot read settings from {path}: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} must hold a mapping of settings, such as 'data: cifar10'; got {type(values).__name__}")
        return cls(**checked(values, source=f"{path}: "))


def checked(values: dict[str, Any], source: str = "") -> dict[str, Any]:
    """`values` with each of its field's type (an int where a float is due becomes one).

    Raises:
        InputError: an unknown key or a value of another type.
    """
    hints = get_type_hints(TrainConfig)
    result = {}
    for name, value in values.items():
        if name not in hints:
            raise InputError(f"{source}unknown setting {name!r}; known: {', '.join(hints)}")
        value = options_text(value, f"{source}{name}") if name == "select_options" else value
        result[name] = of_type(hints[name], value, f"{source}{name}")
    return result


def _check_values(config: TrainConfig) -> None:
    """Raise InputError for a value that no run can have."""
    at_least = {"limit": 1, "image_size": 1, "workers": 0, "float_epochs": 0, "float_batch_size": 2, "interval": 1, "epochs": 0,
                "batch_size": 2, "threads": 1, "seed": 0, "float_seed": 0, "bn_reestimate": 0, "val_interval": 1,
                "select_warmup": 0, "select_anneal": 0, "score_max_age": 1}  # fmt: skip
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}; got {value}")
    for name in ("float_lr", "lr", "scale_lr", "weight_decay", "momentum"):
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be a finite number of at least 0; got {value}")
    if config.momentum >= 1:
        raise InputError(f"momentum must be less than 1; got {config.momentum}; 0.9 is usual")
    _check_name(config.name)
    if not 0 < config.fraction <= 1:
        raise InputError(f"fraction must lie in (0, 1]; got {config.fraction}")
    if not 0 <= config.val_fraction < 1:
        raise InputError(f"val_fraction must lie in [0, 1); got {config.val_fraction}")
    if config.resume and config.overwrite:
        raise InputError("resume keeps a run and overwrite deletes it; give one of them")


def _check_name(name: str | None) -> None:
    if name is not None and (not name or name.startswith(".") or set(name) & set("/\\\0")):
        raise InputError(
            f"name must be a single folder name, without / and without a dot at its start; got {name!r}; choose the folder above with runs"
        )
