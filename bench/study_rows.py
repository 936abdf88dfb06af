"""Rows of studies read back: cells by seed, their curves, and which settings vary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from fastqat.train.config import FREE_ON_RESUME

from .rows import read_rows
from .study_words import ALL_DATA, DEFAULTS, same

Row = dict[str, str]
MEASURE, PICKED = "test_accuracy", "noisy_selected_mean"  # columns: what cells are compared by, and the share of wrong labels picked
CURVE = "_curve"  # ends the name of a study's second file, a line per validated epoch
# Those of them by which cells may be told apart: the others change no weight, or only repeat the cell.
SETTINGS = tuple(name for name in DEFAULTS if name not in FREE_ON_RESUME | {"seed", "float_seed", "val_interval", "workers", "device"})


@dataclass(frozen=True)
class Study:
    """The rows of one study: `cells` cell → seed → row; `curves` (cell, seed) → rows by epoch."""

    name: str
    cells: dict[str, dict[str, Row]]
    curves: dict[tuple[str, str], list[Row]] = field(default_factory=dict)

    def first(self, cell: str) -> Row:
        """A row of `cell`: its settings are those of all."""
        return next(iter(self.cells[cell].values()))

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """The settings that differ between cells: columns before the seed, as results may have names of settings too.

        A fraction is no setting of training on all data.
        """
        rows = [self.first(cell) for cell in self.cells]
        columns = {name for row in rows for name in takewhile(lambda name: name != "seed", row)}
        selected = [row for row in rows if not same(row.get("select", ""), ALL_DATA)]
        values = {name: {row.get(name, "") for row in (selected if name == "fraction" else rows)} for name in SETTINGS if name in columns}
        return tuple(name for name, found in values.items() if len(found) > 1)

    def where(self, wanted: Mapping[str, Any]) -> Study:
        """The cells whose settings are those of `wanted`: name → a value or a list of values; ``cell`` names cells."""

        def fits(cell: str) -> bool:
            row = {**self.first(cell), "cell": cell}
            return all(any(same(row.get(name, ""), value) for value in listed(values)) for name, values in wanted.items())

        return Study(self.name, {cell: rows for cell, rows in self.cells.items() if fits(cell)}, self.curves)

    def numbers(self, cell: str, column: str) -> list[float]:
        """The values of `column` of all seeds of `cell` that have one."""
        return [float(row[column]) for row in self.cells[cell].values() if row.get(column)]


def listed(values: Any) -> list[Any]:
    """A list as it is, any other value as a list of one."""
    return values if isinstance(values, list) else [values]


def study_of(name: str, rows: Iterable[Row], curves: Iterable[Row] = ()) -> Study:
    """A study from rows: those without a test accuracy are left out, and of a cell and seed that stand twice the last counts."""
    cells: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.get("test_accuracy"):
            cells.setdefault(row["cell"], {})[row["seed"]] = row
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in curves:
        if row.get("val_accuracy"):
            found.setdefault((row["cell"], row["seed"]), {})[int(row["epoch"])] = row
    return Study(name, cells, {key: [rows[epoch] for epoch in sorted(rows)] for key, rows in found.items()})


def read_studies(folder: Path) -> dict[str, Study]:
    """Name → study, of all ``study_<name>.csv`` in `folder` that hold a finished run."""
    studies = {}
    for path in sorted(folder.glob("study_*.csv")):
        if path.stem.endswith(CURVE):
            continue
        curve = path.with_name(f"{path.stem}{CURVE}.csv")
        study = study_of(path.stem.removeprefix("study_"), read_rows([path]), read_rows([curve]) if curve.is_file() else ())
        if study.cells:
            studies[study.name] = study
    return studies


def is_all_data(study: Study, cell: str) -> bool:
    """Whether `cell` trains on all data."""
    return same(study.first(cell).get("select", ""), ALL_DATA)
