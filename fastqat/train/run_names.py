"""Names of run directories, made from the settings."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastqat.train.setting_types import OWN_POLICIES

if TYPE_CHECKING:
    from fastqat.train.config import TrainConfig

_LONGEST = 120  # characters of words: file systems take 255, and copies and archives of runs get endings
# What the words of a name tell; some of it only where it matters.
_TOLD = frozenset(
    {"data", "model", "teacher", "qconfig", "quantizer", "select", "fraction", "score", "features", "score_source", "score_normalize"}
    | {"label_noise", "label_noise_type", "oracle_teacher", "loss", "seed"}
    | {"clc_layers", "clc_distribution", "clc_reduction", "clc_weight", "clc_balance", "clc_ratio", "clc_block_input", "clc_grad"}
)


def made_name(config: TrainConfig, changed: Mapping[str, Any]) -> str:
    """Words for the settings that runs differ in most; where they do not tell all that was changed, six digits of a hash of it follow.

    Args:
        config: the settings of the run.
        changed: those that are not the defaults, and that a run cannot be resumed without.
    """
    words = "-".join(_words(config))
    if len(words) <= _LONGEST and all(_is_told(name, value) for name, value in changed.items()):
        return words
    return with_digest(words, changed)


def with_digest(words: str, changed: Mapping[str, Any]) -> str:
    """`words`, cut where they are long, and six digits of a hash of the settings `changed`."""
    facts = "\n".join(f"{name}={value}" for name, value in sorted(changed.items()))
    return f"{words[:_LONGEST].rstrip('-')}-{hashlib.sha256(facts.encode()).hexdigest()[:6]}"


def _is_told(name: str, value: Any) -> bool:
    """Whether the words tell `value` apart from all others; of paths and lists they have parts only."""
    if name in ("data", "features", "clc_layers"):
        return re.fullmatch(r"[\w-]+", value) is not None
    return value is None if name == "interval" else name in _TOLD


def _words(config: TrainConfig) -> list[str]:
    data = config.data.partition(":")[0] if ":" not in config.data else Path(config.data.partition(":")[2]).stem
    chosen = config.select if config.select == "none" else f"{_selection(config)}{100 * config.fraction:g}"
    qconfig = [config.qconfig.replace(":", "-"), *([config.quantizer] if config.quantizer != "lsq" else [])]
    return [data, *_noise(config), config.model, *qconfig, chosen, _loss(config), *_teacher(config), f"seed{config.seed}"]


def _noise(config: TrainConfig) -> list[str]:
    kind = "asym" if config.label_noise_type == "asymmetric" else ""
    return [f"noise{100 * config.label_noise:g}{kind}{'-oracle' if config.oracle_teacher else ''}"] if config.label_noise else []


def _teacher(config: TrainConfig) -> list[str]:
    return [name for name in (config.teacher, config.teacher_checkpoint and config.teacher_checkpoint.stem) if name]


def _loss(config: TrainConfig) -> str:
    """The loss, with the options of the layer correction that are not the defaults."""
    if config.loss != "kd_clc":
        return config.loss
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    named = {name: getattr(config, name) for name in ("clc_layers", "clc_distribution", "clc_reduction", "clc_block_input", "clc_grad")}
    parts = [config.loss, *(re.sub(r"\W+", "_", value) for name, value in named.items() if value != usual[name])]
    auto = config.clc_balance == "auto"
    told = "clc_ratio" if auto else "clc_weight"
    if config.clc_balance != usual["clc_balance"] or getattr(config, told) != usual[told]:
        parts.append(f"{'auto' if auto else 'weight'}{getattr(config, told):g}")
    return "-".join(parts)


def _selection(config: TrainConfig) -> str:
    """The selection, with what distinguishes it from others of that name."""
    parts = [config.select, config.used_score] if config.used_score else [config.select]
    if config.select not in OWN_POLICIES:
        parts += [config.features.replace(".", "_")] if config.features else []
    parts += [config.score_normalize] if config.select == "quarc" and config.score_normalize != "none" else []
    parts += ["static"] if config.interval is None and config.select not in ("none", "rs2") else []
    return "-".join([*parts, "train"] if config.score_source == "train" else parts)
