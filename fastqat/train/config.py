"""Everything a training run depends on, in one dataclass: its fields are the flags of ``fastqat train`` and the keys of its YAML."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from fastqat._errors import InputError
from fastqat.selection.selectors import list_selectors
from fastqat.train.flags import TrainFlags
from fastqat.train.setting_types import OWN_POLICIES, RECIPES, of_type, options_text

# What may differ between a run and its resumption: nothing here changes a weight.
FREE_ON_RESUME = frozenset(
    {"config", "recipe", "study", "jobs", "minutes", "data_root", "name", "runs", "float_cache", "resume", "overwrite", "progress"}
    | {"report", "threads", "checkpoint_seconds", "rho"}
)
# What the data of a run depend on, beside their files.
DATA_FIELDS = (
    "data",
    "data_root",
    "val_fraction",
    "limit",
    "label_noise",
    "label_noise_type",
    "oracle_teacher",
    "noise_seed",
    "augment",
    "image_size",
    "workers",
)
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
class TrainConfig(TrainFlags):
    """The settings of a run, checked. What `recipe` names is put under other settings by `of` and `from_yaml`, not by the constructor.

    Raises:
        InputError: a value of another type or out of range.

    Example:
        >>> TrainConfig(data="cifar10", select="acs", fraction=0.05).run_name
        'cifar10-resnet8-w2a32-acs5-ce-seed0'
        >>> TrainConfig.of({"recipe": "acs-cifar100", "epochs": 20}).run_name
        'cifar100-mobilenet_v2_half-w2a32-acs10-ce-seed0'
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
        qconfig = "-".join([self.qconfig.replace(":", "-"), *([self.quantizer] if self.quantizer != "lsq" else [])])
        parts = [data, *self._noise_name(), self.model, qconfig, chosen, self._loss_name(), *self._teacher_name(), f"seed{self.seed}"]
        return self.name or "-".join(parts)

    @property
    def used_float_seed(self) -> int:
        """Seed of the float stage and of label noise: its own, else the run's."""
        return self.seed if self.float_seed is None else self.float_seed

    @property
    def used_score(self) -> str | None:
        """`score` where the selector goes by it, else None."""
        return self.score if self.select not in OWN_POLICIES and "scores" in list_selectors()[self.select].needs else None

    @property
    def noise_seed(self) -> int | None:
        """Seed of the wrong labels; None where there are none."""
        return self.used_float_seed if self.label_noise else None

    def _noise_name(self) -> list[str]:
        kind = "asym" if self.label_noise_type == "asymmetric" else ""
        return [f"noise{100 * self.label_noise:g}{kind}{'-oracle' if self.oracle_teacher else ''}"] if self.label_noise else []

    def _teacher_name(self) -> list[str]:
        return [name for name in (self.teacher, self.teacher_checkpoint and self.teacher_checkpoint.stem) if name]

    def _loss_name(self) -> str:
        """The loss, with the options of the layer correction that are not the defaults."""
        if self.loss != "kd_clc":
            return self.loss
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        named = {name: getattr(self, name) for name in ("clc_layers", "clc_distribution", "clc_reduction", "clc_block_input", "clc_grad")}
        parts = [self.loss, *(re.sub(r"\W+", "_", value) for name, value in named.items() if value != usual[name])]
        weighted = f"auto{self.clc_ratio:g}" if self.clc_balance == "auto" else f"weight{self.clc_weight:g}"
        return "-".join(parts if (self.clc_balance, self.clc_weight) == ("fixed", usual["clc_weight"]) else [*parts, weighted])

    def _selection_name(self) -> str:
        """The selection, with what distinguishes it from others of that name."""
        parts = [self.select, self.used_score] if self.used_score else [self.select]
        if self.select not in OWN_POLICIES:
            parts += [self.features.replace(".", "_")] if self.features else []
        parts += [self.score_normalize] if self.select == "quarc" and self.score_normalize != "none" else []
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
        return yaml_of(self)

    @classmethod
    def of(cls, values: dict[str, Any], source: str = "") -> TrainConfig:
        """Settings by name, over those of the recipe that they name, over the defaults; `source` begins messages.

        Raises:
            InputError: an unknown key, or a value of another type or out of range.
        """
        given = checked(values, source)
        return cls(**{**_recipe(given.get("recipe")), **given})

    @classmethod
    def from_yaml(cls, path: Path, recipe: str | None = None) -> TrainConfig:
        """Settings from a YAML mapping; what it does not name is that of `recipe`, else of the recipe that it names, else the default.

        Raises:
            InputError: no such file, not a mapping, an unknown key, or a value of another type or out of range.
        """
        values = read_mapping(path)
        return cls.of(values if recipe is None else {**values, "recipe": recipe}, source=f"{path}: ")


def _recipe(name: str | None) -> dict[str, Any]:
    """The settings of the recipe called `name`."""
    if name is None:
        return {}
    path = RECIPES / f"{name}.yaml"
    return checked(read_mapping(path), source=f"{path}: ")


def yaml_of(settings: Any) -> str:
    """The fields of a dataclass as YAML text, in their order."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(settings).items()}
    return yaml.safe_dump(plain, sort_keys=False)


def read_mapping(path: Path) -> dict[str, Any]:
    """The YAML mapping in the file `path`; empty for an empty file.

    Raises:
        InputError: no such file, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read settings from {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of settings, such as 'data: cifar10'; got {type(values).__name__}")
    return values


def checked(values: dict[str, Any], source: str = "", kind: type | None = None) -> dict[str, Any]:
    """`values` with each of its field's type in the dataclass `kind`, `TrainConfig` for None (an int where a float is due becomes one).

    Raises:
        InputError: an unknown key or a value of another type.
    """
    hints = get_type_hints(kind or TrainConfig)
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
                "select_warmup": 0, "select_anneal": 0, "score_max_age": 1, "jobs": 1}  # fmt: skip
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}; got {value}")
    for name in ("float_lr", "lr", "scale_lr", "activation_scale_lr", "weight_decay", "momentum", "checkpoint_seconds"):
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
    _check_noise(config)
    for name in ("clc_weight", "clc_ratio"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a finite number above 0; got {value}; loss kd is without the layer correction")


def _check_noise(config: TrainConfig) -> None:
    if not 0 <= config.label_noise < 1:
        raise InputError(f"label_noise must lie in [0, 1); got {config.label_noise}")
    if config.oracle_teacher and not config.label_noise:
        raise InputError("oracle_teacher trains the float model on the labels before label_noise; set label_noise above 0, or leave it out")
    if config.oracle_teacher and config.float_checkpoint is not None and (config.teacher is None or config.teacher_checkpoint is not None):
        raise InputError("oracle_teacher says how float models are trained, and checkpoints give them here; leave it out")


def _check_name(name: str | None) -> None:
    if name is not None and (not name or name.startswith(".") or set(name) & set("/\\\0")):
        raise InputError(
            f"name must be a single folder name, without / and without a dot at its start; got {name!r}; choose the folder above with runs"
        )
