"""The run directory: settings, metrics, selections, pictures, summary; every file is whole at any moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastqat._errors import CheckpointError, InputError
from fastqat._files import DAMAGED_ARCHIVE, atomic_path, write_atomic, write_csv
from fastqat.train.config import TrainConfig, free_on_resume

COLUMNS = (
    "stage", "epoch", "steps", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "samples_per_second",
    "seconds", "selection_seconds", "selected", "noisy_selected", "reselected", "beta",
    "mean_evs", "mean_ds", "mean_res", "clc_ratio",
)  # fmt: skip
# What a run leaves in its folder beside config.yaml.
_PRODUCTS = (
    "summary.json", "metrics.csv", "checkpoints", "selections", "pictures.npz", "dynamics.npz", "label_issues.npz", "report.html",
    "figures", "scores_*", "folds", ".*.part",
)  # fmt: skip


class RunSettings(Protocol):
    """What a folder needs of the settings of its run."""

    @property
    def resume(self) -> bool: ...

    @property
    def overwrite(self) -> bool: ...

    def saved(self) -> RunSettings: ...

    def to_yaml(self) -> str: ...

    def from_yaml(self, path: Path) -> RunSettings:
        """Settings that `to_yaml` gave, of the same class; a class method there."""
        ...


class RunFolder:
    """``runs/<name>/`` of one run.

    Args:
        path: the folder.
        columns: of ``metrics.csv``.
    """

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS):
        self.path, self.columns = path, columns
        self.checkpoints = path / "checkpoints"
        self.dynamics = path / "dynamics.npz"

    def may_resume(self, config: RunSettings) -> bool:
        """Whether `config` goes on with a run that is here; nothing is changed.

        Raises:
            InputError: the run exists and neither resume nor overwrite was asked for.
            CheckpointError: resume with settings that would change the result.
        """
        if config.overwrite or not (self.path / "config.yaml").is_file():
            return False
        if not config.resume:
            raise InputError(f"run {self.path} exists; continue it with --resume, replace it with --overwrite, or choose another --name")
        self._check_same(config)
        return True

    def open(self, config: RunSettings, resumed: bool) -> None:
        """Make the folder anew without anything of an older run, or clear away what a killed process was writing.

        ``config.yaml`` goes first and comes last: a folder without it is no run, and a start that was killed is cleared by the next.
        """
        if resumed:
            for part in self.path.rglob(".*.part"):
                part.unlink(missing_ok=True)
            return
        whole = config.overwrite and (self.path / "config.yaml").is_file()
        (self.path / "config.yaml").unlink(missing_ok=True)
        for pattern in ("*",) if whole else _PRODUCTS:
            for path in list(self.path.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        write_atomic(self.path / "config.yaml", config.saved().to_yaml())

    def _check_same(self, config: RunSettings) -> None:
        saved = config.from_yaml(self.path / "config.yaml")
        free = free_on_resume(config)
        changed = [name for name in vars(config) if name not in free and getattr(saved, name) != getattr(config, name)]
        if changed:
            told = ", ".join(f"{name} {getattr(saved, name)} (now {getattr(config, name)})" for name in changed)
            raise CheckpointError(f"run {self.path} was started with {told}; resume it with the same settings or choose another --name")

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """``metrics.csv``: one row per epoch so far, replaced as a whole."""
        write_csv(self.path / "metrics.csv", self.columns, rows)

    def write_selection(self, epoch: int, arrays: dict[str, np.ndarray]) -> None:
        """``selections/epoch_0000.npz``."""
        self._write_npz(self.path / "selections" / f"epoch_{epoch:04d}.npz", arrays)

    def read_selections(self, say: Callable[[str], None]) -> list[dict[str, np.ndarray]]:
        """All selections, oldest first; `say` is told of a damaged one, which is left out."""
        selections = []
        for path in sorted((self.path / "selections").glob("epoch_*.npz")):
            try:
                with np.load(path) as arrays:
                    selections.append(dict(arrays))
            except DAMAGED_ARCHIVE as error:
                say(f"{path} is damaged and left out ({type(error).__name__})")
        return selections

    def write_pictures(self, arrays: dict[str, np.ndarray]) -> None:
        """``pictures.npz``."""
        self._write_npz(self.path / "pictures.npz", arrays)

    def write_label_issues(self, arrays: dict[str, np.ndarray]) -> None:
        """``label_issues.npz``."""
        self._write_npz(self.path / "label_issues.npz", arrays)

    def _write_npz(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        with atomic_path(path) as part, open(part, "wb") as handle:
            np.savez_compressed(handle, **arrays)  # type: ignore[arg-type]

    def write_summary(self, summary: dict[str, Any]) -> None:
        """``summary.json``: its presence says that the run is finished."""
        write_atomic(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None for an unfinished one, and where it is damaged, so that it is made again."""
        try:
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    @property
    def has_page(self) -> bool:
        """Whether the report is written."""
        return (self.path / "report.html").is_file()


def saved_config(run_dir: Path) -> TrainConfig | None:
    """The settings of a run that exists, without its name; else None.

    Raises:
        InputError: the run is one of a detector, or its settings cannot be read.
    """
    check_classification(run_dir)
    path = run_dir / "config.yaml"
    return TrainConfig.from_yaml(path) if path.is_file() else None


def check_classification(run_dir: Path) -> None:
    """InputError when `run_dir` is a run of ``fastqat detect``, whose measures and selections are others."""
    path = run_dir / "config.yaml"
    # By a setting that only these have, and without parsing: a report is made of damaged files, too.
    if path.is_file() and "\ntrain_split:" in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{run_dir} is a run of a detector and this is for classification; see its summary.json and metrics.csv")
