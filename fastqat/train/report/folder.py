"""A run directory read back into memory: configuration, metrics, selections, pictures, summary.

Reading never changes a run and copes with one that stopped half-way: what is missing stays empty, what is damaged is named in `Run.notes`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fastqat._errors import InputError
from fastqat._files import DAMAGED_ARCHIVE, read_csv
from fastqat.train.folder import check_classification

STAGES = ("float", "teacher", "qat")


@dataclass(frozen=True)
class SelectionRecord:
    """One re-selection: `indices` [k] into the pool, best first; `labels` [pool]; `scores` name → [pool]."""

    epoch: int
    indices: np.ndarray
    labels: np.ndarray
    scores: dict[str, np.ndarray]

    @property
    def chosen(self) -> np.ndarray:
        """Which samples of the pool are selected, bool [pool]."""
        mask = np.zeros(len(self.labels), dtype=bool)
        mask[self.indices] = True
        return mask


@dataclass(frozen=True)
class Run:
    """Everything that a report needs from one run directory."""

    path: Path
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    selections: list[SelectionRecord] = field(default_factory=list)
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    label_issues: dict[str, np.ndarray] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def finished(self) -> bool:
        """True when the run reached its end: the test set is read once, then."""
        return self.summary.get("test_accuracy") is not None

    def fact(self, key: str, default: Any = None) -> Any:
        """A value from the summary, else from the configuration, else `default`."""
        value = self.summary.get(key)
        if value is None:
            value = self.config.get(key)
        return default if value is None else value

    def stage(self, stage: str) -> list[dict[str, Any]]:
        """The metric rows of one stage, ``"float"``, ``"teacher"`` or ``"qat"``, by epoch."""
        return [row for row in self.rows if row["stage"] == stage]


def series(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """One column of metric rows as fp64 [len(rows)]; NaN where a row has no value."""
    return np.array([row.get(key, np.nan) for row in rows], dtype=float)


def read_run(path: str | Path) -> Run:
    """Read the run directory `path`.

    Raises:
        InputError: `path` is not a folder that ``fastqat train`` wrote; a detector's is not either.

    Example:
        >>> read_run("no/such/folder")
        Traceback (most recent call last):
        fastqat._errors.InputError: no/such/folder does not exist; pass a run directory such as runs/<name>, written by `fastqat train`
    """
    path = Path(path)
    _check_is_run(path)
    check_classification(path)
    notes: list[str] = []
    text = (path / "config.yaml").read_text(encoding="utf-8") if (path / "config.yaml").is_file() else ""
    return Run(
        path=path.resolve(),
        config_text=text,
        config=_guarded(path / "config.yaml", _read_yaml, {}, notes),
        rows=_guarded(path / "metrics.csv", _read_metrics, [], notes),
        selections=_read_selections(path / "selections", notes),
        pictures=_guarded(path / "pictures.npz", _read_pictures, {}, notes),
        label_issues=_guarded(path / "label_issues.npz", _read_arrays, {}, notes),
        summary=_guarded(path / "summary.json", _read_json, {}, notes),
        notes=notes,
    )


def _check_is_run(path: Path) -> None:
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {problem}; pass a run directory such as runs/<name>, written by `fastqat train`")
    if not any((path / name).is_file() for name in ("config.yaml", "metrics.csv", "summary.json")):
        inside = sorted(child.name for child in path.iterdir() if (child / "config.yaml").is_file())
        hint = f"did you mean {path / inside[-1]}?" if inside else "pass a folder such as runs/<name>, written by `fastqat train`"
        raise InputError(f"{path} is not a run directory: it has no config.yaml, metrics.csv or summary.json; {hint}")


def _guarded(path: Path, read: Callable[[Path], Any], empty: Any, notes: list[str]) -> Any:
    """``read(path)``, or `empty` where the file is missing or damaged; damage is noted."""
    if not path.is_file():
        return empty
    try:
        return read(path)
    except (*DAMAGED_ARCHIVE, yaml.YAMLError, csv.Error) as error:
        notes.append(f"{path.name} could not be read and is left out ({type(error).__name__}).")
        return empty


def _read_yaml(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    loaded = json.loads(path.read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, dict) else {}


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows in the order of training; of a repeated epoch (after a resume) the last counts, a half-written last line does not."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for raw in read_csv(path):
        row = _parse_row(raw)
        if row is not None:
            rows[STAGES.index(row["stage"]), int(row["epoch"])] = row
    return [rows[key] for key in sorted(rows)]


def _parse_row(raw: dict[str, Any]) -> dict[str, Any] | None:
    if None in raw or None in raw.values() or raw.get("stage") not in STAGES or not raw.get("epoch"):
        return None
    try:
        numbers = {key: float(value) if value else float("nan") for key, value in raw.items() if key != "stage"}
    except ValueError:
        return None
    return {"stage": raw["stage"], **numbers}


def _read_selections(folder: Path, notes: list[str]) -> list[SelectionRecord]:
    records = []
    for path in sorted(folder.glob("epoch_*.npz")):
        record = _guarded(path, _read_selection, None, notes)
        if record is not None:
            records.append(record)
    return sorted(records, key=lambda record: record.epoch)


def _read_selection(path: Path) -> SelectionRecord:
    with np.load(path) as archive:
        scores = {name.removeprefix("score_"): archive[name] for name in archive.files if name.startswith("score_")}
        record = SelectionRecord(int(path.stem.split("_")[1]), archive["indices"], archive["labels"], scores)
    pool = len(record.labels)
    if any(len(values) != pool for values in scores.values()) or not ((record.indices >= 0) & (record.indices < pool)).all():
        raise ValueError("indices or scores do not fit the pool")
    return record


def _read_pictures(path: Path) -> dict[int, np.ndarray]:
    with np.load(path) as archive:
        return dict(zip(archive["index"].tolist(), archive["x"], strict=True))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)
