"""Everything a training run depends on, in one dataclass: its fields are the flags of ``fastqat train`` and the keys of its YAML."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from fastqat._errors import InputError
from fastqat.selection.selectors import list_selectors
from fastqat.train.flags import TrainFlags
from fastqat.train.setting_types import OWN_POLICIES, of_type, options_text

# What may differ between a run and its resumption: nothing here changes a weight.
FREE_ON_RESUME = frozenset(
    {"config", "recipe", "study", "jobs", "minutes", "data_root", "name", "runs", "resume", "overwrite", "progress", "report", "threads"}
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
