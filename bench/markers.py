"""The markers of bench/evidence.md read and checked: a slip of the pen must not read as "no rows yet"."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from fastqat._errors import InputError

from .study_figures import FIGURE_NAMES, Evidence
from .study_plans import plans_in, values_of
from .study_rows import SETTINGS, Study, listed
from .study_words import same

_COMPARED = {"study", "compare", "free", "where"}
# What a marker may have, by the kind of table; beside `kind`.
KEYS = {
    "cells": _COMPARED | {"measure", "cost"},
    "matrix": _COMPARED | {"measure", "across"},
    "seconds": _COMPARED,
    "drift": {"study"},
    "studies": set[str](),
    "figures": {"study", "only"},
}
KINDS = tuple(kind for kind in KEYS if kind != "figures")


def read_marker(what: str, text: str, evidence: Evidence, plans: Path) -> dict[str, Any]:
    """The mapping of a marker, checked; tables have a `kind`.

    Args:
        what: ``"table"`` or ``"figures"``.
        text: the mapping in YAML.
        evidence: the rows, which know settings, values and columns.
        plans: folder of the studies that are planned, which know values without rows.

    Raises:
        InputError: an unknown key, kind, study, setting, value, column or figure; says which and where.
    """
    source = f"marker {what}: {text}"
    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is no YAML mapping: {' '.join(str(error).split())}") from error
    kind = what
    if what == "table":
        kind = spec.setdefault("kind", "cells")
        _choice(f"{source}: kind", kind, KINDS)
    for key in spec.keys() - {"kind"}:
        _choice(f"{source}: key", key, KEYS[kind])
    if "study" in KEYS[kind]:
        _check_study(spec, evidence, plans, source)
    return spec  # type: ignore[no-any-return]  # a mapping, as MARKER has it in braces


def _check_study(spec: Mapping[str, Any], evidence: Evidence, plans: Path, source: str) -> None:
    if "study" not in spec:
        raise InputError(f"{source} names no study; add study: NAME, of bench/results/study_NAME.csv")
    name, planned = spec["study"], plans_in(plans)
    _choice(f"{source}: study", name, {*planned, *evidence.names})
    study = evidence.studies.get(name)
    values = values_of(planned.get(name), study)
    for key in ("where", "compare"):
        if key in spec:
            _check_values(spec[key], values, study, f"{source}: {key}")
    if len(spec.get("compare", ("",))) != 1:
        raise InputError(f"{source}: compare must be one setting with the value that the others are compared with")
    _each(spec.get("free", []), SETTINGS, f"{source}: free")
    _each(spec.get("only", []), FIGURE_NAMES, f"{source}: only")
    if study is not None:
        _each([spec[key] for key in ("measure", "across") if key in spec], columns_of(study), f"{source}: measure or across")


def columns_of(study: Study) -> set[str]:
    """The columns that its rows have."""
    return {name for cell in study.cells for name in study.first(cell)}


def _check_values(wanted: Any, values: Mapping[str, Collection[str]], study: Study | None, source: str) -> None:
    """Settings that cells are told apart by, with values that some cell has or is to have."""
    if not isinstance(wanted, dict):
        raise InputError(f"{source} must be a mapping of settings to values; got {wanted!r}")
    for name, value in wanted.items():
        _choice(f"{source}: setting", name, values)
        if study is not None and name != "cell":
            _choice(f"{source}: setting that cells of the study differ in", name, columns_of(study))
        for one in listed(value):
            if not any(same(known, one) for known in values[name]):
                raise InputError(f"{source}: no cell has {name} {one!r}; planned or run: {', '.join(sorted(values[name]))}")


def _each(found: Any, accepted: Collection[str], source: str) -> None:
    if not isinstance(found, list):
        raise InputError(f"{source} must be a list; got {found!r}")
    for one in found:
        _choice(source, one, accepted)


def _choice(source: str, found: Any, accepted: Collection[str]) -> None:
    if found not in accepted:
        raise InputError(f"{source}: unknown {found!r}; accepted: {', '.join(sorted(accepted)) or 'none'}")
