"""Rows of finished runs: one line per run with its results and costs, and one per validated epoch with the curve.

A row is read from ``config.yaml``, ``summary.json`` and ``metrics.csv`` of a run and from nothing else, so that any finished run has one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fastqat._errors import DataError
from fastqat._files import write_atomic
from fastqat.train.config import FREE_ON_RESUME, TrainConfig
from fastqat.train.folder import COLUMNS as METRICS

# Settings that every table has, so that tables of several studies can be read together; the others where cells differ in them.
_ALWAYS = ("data", "model", "qconfig", "select", "fraction", "loss", "epochs")
_RESULTS = (
    "seed", "float_seed", "float_accuracy", "test_accuracy", "best_test_accuracy", "val_accuracy", "gradient_steps", "scoring_forwards",
    "unique_samples", "seconds", "selection_seconds",
)  # fmt: skip
# Columns of metrics.csv whose last and mean value over the epochs of QAT a row has; empty where the run did not log them.
_LOGGED = ("noisy_selected", "clc_ratio")
_PLACE = ("commit", "torch", "cpu", "threads")
_DEFAULTS = vars(TrainConfig())
_CURVE = tuple(name for name in METRICS if name not in ("stage", "lr", "samples_per_second"))


class StudyRows:
    """The rows of a study so far.

    Args:
        study: its name.
        settings: names of the settings that get a column, such as `differing` finds them.
    """

    def __init__(self, study: str, settings: Sequence[str]):
        self.study, self.settings = study, tuple(settings)
        self.rows: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []

    def add(self, run_dir: Path) -> dict[str, Any]:
        """Read the finished run in `run_dir`; returns its row. The cell is the folder's name without ``-seedN`` at its end.

        Raises:
            DataError: the run is not finished, or one of its files is damaged.
        """
        settings = _settings(run_dir)
        try:
            summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
            metrics = [row for row in _read(run_dir / "metrics.csv") if row["stage"] == "qat"]
            if len(metrics) != summary["epochs"]:
                raise ValueError(f"metrics.csv has {len(metrics)} epochs of QAT, the summary {summary['epochs']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unfinished(run_dir, error) from error
        key = {"study": self.study, "cell": re.sub(r"-seed\d+$", "", run_dir.name)}
        values = {**settings, "fraction": summary.get("fraction"), **{n: summary.get(n) for n in (*_RESULTS, *_PLACE)}}
        row = {**key, **{name: values[name] for name in (*self.settings, *_RESULTS, *_PLACE)}, **_logged(metrics)}
        self.rows.append(row)
        self.curve += [key | {"seed": summary.get("seed")} | {n: m.get(n) for n in _CURVE} for m in metrics if m.get("val_accuracy")]
        return row

    def save(self, folder: Path) -> Path:
        """Write ``study_<name>.csv`` and ``study_<name>_curve.csv``; returns the first."""
        path = folder / f"study_{self.study}.csv"
        names = ("study", "cell", *self.settings, *_RESULTS, *(f"{name}{part}" for name in _LOGGED for part in ("", "_mean")), *_PLACE)
        order = {id(row): (str(row["cell"]), int(row["seed"])) for row in (*self.rows, *self.curve)}
        _write(path, names, sorted(self.rows, key=lambda row: order[id(row)]))
        curve = sorted(self.curve, key=lambda row: (*order[id(row)], int(row["epoch"])))
        _write(path.with_name(f"{path.stem}_curve.csv"), ("study", "cell", "seed", *_CURVE), curve)
        return path


def write_rows(study: str, run_dirs: Sequence[Path], folder: Path) -> Path:
    """Rows and curves of finished runs, as those of the study called `study`; returns the file of rows in `folder`.

    Raises:
        DataError: one is no finished run.
    """
    rows = StudyRows(study, differing(map(_settings, run_dirs)))
    for run_dir in run_dirs:
        rows.add(run_dir)
    return rows.save(folder)


def differing(runs: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The settings that a table of runs with these settings shows: some always, and those in which runs of one seed differ.

    Example:
        >>> differing([{"seed": 0, "lr": 0.1}, {"seed": 0, "lr": 0.2}])[-2:]
        ('epochs', 'lr')
    """
    values: dict[tuple[str, int], set[Any]] = defaultdict(set)
    for settings in runs:
        for name, value in settings.items():
            values[name, settings["seed"]].add(value)
    several = {name for (name, _), found in values.items() if len(found) > 1} - FREE_ON_RESUME - {"float_seed"}
    return (*_ALWAYS, *(name for name in _DEFAULTS if name in several and name not in _ALWAYS))


def _settings(run_dir: Path) -> dict[str, Any]:
    """The settings of the run in `run_dir` as its file has them; of those that are newer than the run, the defaults."""
    try:
        return {**_DEFAULTS, **yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise _unfinished(run_dir, error) from error


def _unfinished(run_dir: Path, error: Exception) -> DataError:
    told = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return DataError(f"{run_dir} is no finished run ({told}); go on with it, remove it, or leave it out")


def _logged(metrics: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Last and mean value of the `_LOGGED` columns over the epochs that have one."""
    found: dict[str, Any] = {}
    for name in _LOGGED:
        values = [float(row[name]) for row in metrics if row.get(name)]
        found |= {name: values[-1], f"{name}_mean": sum(values) / len(values)} if values else {}
    return found


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _write(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue())
