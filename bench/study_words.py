"""Settings of runs and their values in words, and whether two of them are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path

from fastqat.selection.selectors import list_selectors
from fastqat.train.flags import TrainFlags
from fastqat.train.setting_types import OWN_POLICIES

DEFAULTS = {setting.name: setting.default for setting in fields(TrainFlags)}
ALL_DATA = "none"  # the value of select that trains on all data
BARE = frozenset({"data", "model", "qconfig", "loss", "quantizer", "select", "score"})  # whose values speak for themselves
PLAIN = BARE | {"fraction", "label_noise", "interval", "epochs", "float_epochs", "limit", "batch_size", "lr"}  # told at their default too


def same(found: str, wanted: object) -> bool:
    """Whether a value of a row is that of a YAML file: numbers by value, the rest by its text; None is an empty cell.

    Example:
        >>> same("0.10", 0.1), same("True", True), same("", None), same("kd", "ce")
        (True, True, True, False)
    """
    if wanted is None:
        return found in ("", "None")
    try:
        return float(found) == float(str(wanted))
    except ValueError:
        return found.lower() == str(wanted).lower()


def told(name: str, value: str) -> str:
    """A setting and its value in words.

    Example:
        >>> told("select", "none"), told("fraction", "0.1"), told("bn_reestimate", "20"), told("interval", "")
        ('all data', '10 %', 'bn reestimate 20', 'selected once')
    """
    if name == "select":
        return "all data" if same(value, ALL_DATA) else value
    if name == "fraction":
        return f"{100 * float(value):g} %"
    if name == "interval":
        return "selected once" if same(value, None) else f"every {value} epochs"
    if name == "label_noise":
        return f"{100 * float(value or 0):g} % label noise"
    if name in BARE:
        return value
    value = Path(value).stem if "/" in value else value or "none"
    return name.replace("_", " ") + ("" if same(value, True) else f" {value}")


def goes_by_score(select: str) -> bool:
    """Whether a way of choosing data takes the setting `score`.

    Example:
        >>> goes_by_score("topk"), goes_by_score("k_center"), goes_by_score("acs")
        (True, False, False)
    """
    return select not in OWN_POLICIES and select in list_selectors() and "scores" in list_selectors()[select].needs


def words(row: Mapping[str, str], names: Iterable[str]) -> str:
    """The settings `names` of a row in words, without those that say nothing: options at their default, the score of ways without one."""
    shown = [name for name in names if name in PLAIN or not same(row.get(name, ""), DEFAULTS[name])]
    if not goes_by_score(row.get("select", "")):
        shown = [name for name in shown if name != "score"]
    return ", ".join(told(name, row.get(name, "")) for name in shown)
