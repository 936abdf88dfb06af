"""Everything a training run depends on, in one dataclass: its fields are the flags of ``fastqat train`` and the keys of its YAML."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import yaml

from fastqat._errors import InputError
from fastqat.selection.scores.registry import get_score
from fastqat.selection.selectors import list_selectors
from fastqat.train.flags import TrainFlags
from fastqat.train.run_names import made_name
from fastqat.train.setting_types import OWN_POLICIES, RECIPES, of_type, options_text

# What may differ between a run and its resumption: nothing here changes a weight, but for its last bits, which threads do.
FREE_ON_RESUME = frozenset(
    {"config", "recipe", "study", "only", "results", "jobs", "minutes"}
    | {"data_root", "name", "runs", "float_cache", "resume", "overwrite", "progress"}
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
    """The settings of a run, checked. What `recipe` names is put under other settings by `of` and `from_yaml`; the constructor takes all
    settings as they are, and refuses a recipe that is not in them.

    Raises:
        InputError: a value of another type or out of range.

    Example:
        >>> TrainConfig(data="cifar10", select="acs", fraction=0.05).run_name
        'cifar10-resnet8-w2a32-acs5-ce-seed0'
        >>> TrainConfig(data="cifar10", select="acs", fraction=0.05, epochs=40, lr=0.02).run_name
        'cifar10-resnet8-w2a32-acs5-ce-seed0-15a2b8'
        >>> config = TrainConfig.of({"recipe": "acs-cifar100", "epochs": 20})
        >>> config.model, config.epochs, config.batch_size
        ('mobilenet_v2_half', 20, 256)
    """

    def __post_init__(self) -> None:
        for name, value in checked(dataclasses.asdict(self)).items():
            object.__setattr__(self, name, value)
        _check_values(self)

    @property
    def run_name(self) -> str:
        """`name`, or one made from the settings that runs differ in most, with a hash where others are not the defaults either."""
        return self.name or made_name(self, self._changed())

    def _changed(self) -> dict[str, Any]:
        """The settings that are not the defaults, without those that may differ between a run and its resumption."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in vars(self).items() if name not in FREE_ON_RESUME and value != defaults[name]}

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

    @property
    def oracle_models(self) -> tuple[str, ...]:
        """Which of the float models may have seen the labels before `label_noise`: with `oracle_teacher` the teacher, and given weights."""
        given = ("float",) if self.float_checkpoint is not None else ()
        return (*given, "teacher") if self.oracle_teacher else ()

    @property
    def selector_options(self) -> dict[str, Any]:
        """`select_options` as a mapping."""
        return json.loads(self.select_options)

    @property
    def run_dir(self) -> Path:
        return self.runs / self.run_name

    def saved(self) -> TrainConfig:
        """The settings that a run keeps: without its name and what was asked of this start only, so that they start other runs too."""
        return dataclasses.replace(self, config=None, name=None, resume=False, overwrite=False, jobs=1)

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


def without_effect(settings: Mapping[str, Any]) -> frozenset[str]:
    """Those of `settings` that change nothing: of the layer correction, where the loss is without it.

    Example:
        >>> without_effect({"loss": "kd", "clc_balance": "fixed"}), without_effect({"loss": "kd_clc", "clc_balance": "fixed"})
        (frozenset({'clc_balance'}), frozenset())
    """
    return frozenset(name for name in settings if name.startswith("clc_") and settings.get("loss") != "kd_clc")


@cache
def _recipe(name: str | None) -> Mapping[str, Any]:
    """The settings of the recipe called `name`."""
    if name is None:
        return {}
    path = RECIPES / f"{name}.yaml"
    return MappingProxyType(checked(read_mapping(path), source=f"{path}: "))


def free_on_resume(settings: Any) -> frozenset[str]:
    """Names of `settings` that may differ between a run and its resumption: `FREE_ON_RESUME`, and those without effect on this run."""
    return FREE_ON_RESUME | without_effect(vars(settings))


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
    _check_teacher(config)
    _check_recipe(config)
    _check_correction(config)


def _check_correction(config: TrainConfig) -> None:
    for name, balance in (("clc_weight", "fixed"), ("clc_ratio", "auto")):
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a finite number above 0; got {value}; loss kd is without the layer correction")
        if config.clc_balance != balance and value != getattr(TrainFlags, name):
            raise InputError(f"{name} {value:g} is for clc_balance {balance}; use clc_balance={balance!r}, or leave {name} out")


def _check_noise(config: TrainConfig) -> None:
    if not 0 <= config.label_noise < 1:
        raise InputError(f"label_noise must lie in [0, 1); got {config.label_noise}")
    if config.oracle_teacher and not config.label_noise:
        raise InputError("oracle_teacher trains the teacher on the labels before label_noise; set label_noise above 0, or leave it out")
    given = [name for name in ("float_checkpoint", "teacher_checkpoint") if getattr(config, name) is not None]
    if config.label_noise and given and not config.oracle_teacher:
        raise InputError(
            f"the weights of {given[0]} may come from labels without label_noise; leave it out, or mark the run with oracle_teacher=True"
        )


def _check_teacher(config: TrainConfig) -> None:
    """Refuse a teacher that would be trained, perhaps for days, and that neither the loss nor the selection looks at."""
    compared = config.used_score is not None and "teacher" in get_score(config.used_score).needs
    if config.loss != "ce" or config.select in ("acs", "quarc") or compared:
        return
    if asked := [name for name in ("teacher", "teacher_checkpoint", "oracle_teacher") if getattr(config, name)]:
        told = f"neither loss ce nor select {config.select} looks at a teacher"
        raise InputError(f"{told}; leave {', '.join(asked)} out, or choose loss='kd' or select='acs'")


def _check_recipe(config: TrainConfig) -> None:
    """Refuse a recipe that is a name only: its settings are put in before the constructor is called."""
    if config.recipe is None:
        return
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    stated = {name: value for name, value in _recipe(config.recipe).items() if value != usual[name]}
    absent = [name for name in stated if getattr(config, name) == usual[name]]
    if 2 * len(absent) > len(stated):
        raise InputError(
            f"recipe {config.recipe!r} is read by TrainConfig.of({{'recipe': ...}}), from_yaml and the command line, not by the "
            f"constructor; of what it states {', '.join(absent)} would stay at the defaults"
        )


def _check_name(name: str | None) -> None:
    if name is not None and (not name or name.startswith(".") or set(name) & set("/\\\0")):
        raise InputError(
            f"name must be a single folder name, without / and without a dot at its start; got {name!r}; choose the folder above with runs"
        )
