"""What studies are planned: the YAML files of a folder, and which cells, seeds and values of settings they have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fastqat.train.study_grid import Study as Plan
from fastqat.train.study_grid import read_study

from .study_rows import SETTINGS, Study

read_plan = cache(read_study)  # the settings of each run are checked when a file is read


def plans_in(folder: Path) -> dict[str, Plan]:
    """Name → study, of every YAML file in `folder`."""
    return {path.stem: read_plan(path) for path in sorted(folder.glob("*.yaml"))}


def values_of(plan: Plan | None, study: Study | None) -> dict[str, set[str]]:
    """Setting, or ``cell``, → the values that are planned or have rows, as text."""
    found: dict[str, set[str]] = {name: set() for name in (*SETTINGS, "cell")}
    for run in plan.runs if plan else ():
        for name in SETTINGS:
            value = getattr(run.config, name)
            found[name].add("" if value is None else str(value))
        found["cell"].add(run.cell)
    for cell in study.cells if study else ():
        row = study.first(cell) if study else {}
        for name in found.keys() & row.keys():
            found[name].add(row[name])
    return found


def coverage(plan: Plan | None, rows: Mapping[str, Mapping[str, object]]) -> list[str]:
    """How many cells, seeds a cell and runs have `rows` (cell → seed → row), each of how many are planned."""
    seeds = [len(found) for found in rows.values()] or [0]
    counts = [str(len(rows)), str(min(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)}–{max(seeds)}", str(sum(seeds))]
    if plan is None:
        return counts
    planned = {(run.cell, run.config.seed) for run in plan.runs}
    totals = (len({cell for cell, _ in planned}), len({seed for _, seed in planned}), len(planned))
    return [f"{count} of {total}" for count, total in zip(counts, totals, strict=True)]
