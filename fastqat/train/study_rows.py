"""Rows of finished runs: one line per run with its results and costs, and one per validated epoch with the curve.

A row is read from ``config.yaml``, ``summary.json`` and ``metrics.csv`` of a run, so that any finished run has one. Where an older version
did not name the float weights, the name is made from ``checkpoints/float.pt``. What a run does not tell is empty.

``float_model`` names the weights that a run started from: runs with the same name share them, whatever their ``float_seed`` says. ``jobs``
is how many runs of the study went on side by side, which ``seconds`` go with.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fastqat._errors import CheckpointError, DataError
from fastqat._files import read_csv, write_csv
from fastqat.train.checkpoint import load_state
from fastqat.train.config import FREE_ON_RESUME, TrainConfig, without_effect
from fastqat.train.folder import COLUMNS as METRICS
from fastqat.train.parallel import weights_name

# Settings that every table has, so that tables of several studies can be read together; the others where cells differ in them.
_ALWAYS = ("data", "model", "qconfig", "select", "fraction", "loss", "epochs")
_RESULTS = (
    "seed", "float_seed", "float_model", "float_accuracy", "test_accuracy", "best_test_accuracy", "val_accuracy", "gradient_steps",
    "scoring_forwards", "unique_samples", "seconds", "selection_seconds",
)  # fmt: skip
# Columns of metrics.csv whose last and mean value over the epochs of QAT a row has, and their names there, where a setting may be called
# as they are; empty where the run did not log them.
_LOGGED = {"noisy_selected": "noisy_selected", "clc_ratio": "clc_to_kd"}
_PLACE = ("commit", "torch", "device", "cpu", "threads", "jobs")
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
            metrics = [row for row in read_csv(run_dir / "metrics.csv") if row["stage"] == "qat"]
            if len(metrics) != summary["epochs"]:
                raise ValueError(f"metrics.csv has {len(metrics)} epochs of QAT, the summary {summary['epochs']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unfinished(run_dir, error) from error
        key = {"study": self.study, "cell": _cell(run_dir)}
        values = {**settings, "fraction": summary.get("fraction"), **{n: summary.get(n) for n in (*_RESULTS, *_PLACE)}}
        values["float_model"] = values["float_model"] or _float_model(run_dir)
        row = {**key, **{name: values[name] for name in (*self.settings, *_RESULTS, *_PLACE)}, **_logged(metrics)}
        self.rows.append(row)
        self.curve += [key | {"seed": summary.get("seed")} | {n: m.get(n) for n in _CURVE} for m in metrics if m.get("val_accuracy")]
        return row

    def save(self, folder: Path) -> Path:
        """Write ``study_<name>.csv`` and ``study_<name>_curve.csv``; returns the first."""
        path = folder / f"study_{self.study}.csv"
        names = (
            "study",
            "cell",
            *self.settings,
            *_RESULTS,
            *(f"{name}{part}" for name in _LOGGED.values() for part in ("", "_mean")),
            *_PLACE,
        )
        order = {id(row): (str(row["cell"]), int(row["seed"])) for row in (*self.rows, *self.curve)}
        write_csv(path, names, sorted(self.rows, key=lambda row: order[id(row)]))
        curve = sorted(self.curve, key=lambda row: (*order[id(row)], int(row["epoch"])))
        write_csv(path.with_name(f"{path.stem}_curve.csv"), ("study", "cell", "seed", *_CURVE), curve)
        return path


def write_rows(study: str, run_dirs: Sequence[Path], folder: Path) -> Path:
    """Rows and curves of finished runs, as those of the study called `study`; returns the file of rows in `folder`.

    Raises:
        DataError: one is no finished run.
    """
    rows = StudyRows(study, differing((_cell(run_dir), _settings(run_dir)) for run_dir in run_dirs))
    for run_dir in run_dirs:
        rows.add(run_dir)
    return rows.save(folder)


def differing(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[str, ...]:
    """The settings that a table of runs, cell and settings of each, shows: some always, and those in which its cells differ.

    What changes with the seed within a cell is compared among runs of one seed; all else among all runs, which may share no seed.

    Example:
        >>> differing([("a", {"seed": 0, "lr": 0.1}), ("b", {"seed": 1, "lr": 0.2})])[-2:]
        ('epochs', 'lr')
    """
    by_cell, by_seed, everywhere = (defaultdict[Any, set[Any]](set) for _ in range(3))
    for cell, settings in runs:
        for name, value in settings.items():
            by_cell[name, cell].add(value)
            by_seed[name, settings["seed"]].add(value)
            everywhere[name].add(value)
    with_seed = {name for (name, _), found in by_cell.items() if len(found) > 1}
    several = {name for (name, _), found in by_seed.items() if len(found) > 1}
    several |= {name for name, found in everywhere.items() if len(found) > 1 and name not in with_seed}
    several -= FREE_ON_RESUME | {"seed", "float_seed"}
    return (*_ALWAYS, *(name for name in _DEFAULTS if name in several and name not in _ALWAYS))


def _cell(run_dir: Path) -> str:
    return re.sub(r"-seed\d+$", "", run_dir.name)


def _float_model(run_dir: Path) -> str | None:
    """The name of the float weights that the run kept; None where it kept none, or they are damaged."""
    try:
        return weights_name(load_state(run_dir / "checkpoints" / "float.pt")["model"])
    except (CheckpointError, KeyError):
        return None


def _settings(run_dir: Path) -> dict[str, Any]:
    """The settings of the run in `run_dir` as its file has them; the defaults of those that are newer than the run, or had no effect."""
    try:
        settings = {**_DEFAULTS, **yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))}
        return {**settings, **{name: _DEFAULTS[name] for name in without_effect(settings) & _DEFAULTS.keys()}}
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise _unfinished(run_dir, error) from error


def _unfinished(run_dir: Path, error: Exception) -> DataError:
    told = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return DataError(f"{run_dir} is no finished run ({told}); go on with it, remove it, or leave it out")


def _logged(metrics: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Last and mean value of the `_LOGGED` columns over the epochs that have one."""
    found: dict[str, Any] = {}
    for column, name in _LOGGED.items():
        values = [float(row[column]) for row in metrics if row.get(column)]
        found |= {name: values[-1], f"{name}_mean": sum(values) / len(values)} if values else {}
    return found
