"""Score a data set with the model of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from fastqat._errors import CheckpointError, InputError
from fastqat.selection.scorer import score_dataset
from fastqat.selection.table import ScoreTable
from fastqat.train.checkpoint import check_same_data, load_state, load_weights
from fastqat.train.checks import check_backend
from fastqat.train.config import TrainConfig
from fastqat.train.float_stage import given_weights, new_model
from fastqat.train.folder import saved_config
from fastqat.train.policies import scoring_forward
from fastqat.train.pool import RunData, prepare_data
from fastqat.train.run import pick_device
from fastqat.train.stage import forward_batch
from fastqat.train.student import make_student


def score_run(
    run: Path,
    scores: tuple[str, ...] = ("evs", "ds"),
    *,
    data: str | None = None,
    split: str = "pool",
    checkpoint: Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> ScoreTable:
    """Score every sample of a data set with the quantized model of the run directory `run`, its float model as the teacher.

    Args:
        run: a run directory.
        scores: names from `fastqat.selection.list_scores`.
        data: name of the data set; None: the run's own.
        split: ``"pool"``: the samples that the run chose from, in the order that the indices of its selections count in;
            ``"train"``, ``"test"``: the whole training or test set.
        checkpoint: None: the run's best.
        device: as for training.
        progress: show a bar on a terminal.

    Raises:
        InputError: `run` is no run directory, unknown split or score.
        CheckpointError: the checkpoint is missing, damaged, of other shapes than the data, or the run's pool has changed.
    """
    config, place = _config(run), pick_device(device)
    check_backend(config, place)
    used = prepare_data(replace(config, data=data or config.data), place)
    student, teacher, saved = _models(config, run, checkpoint, used)
    if split == "pool" and data is None:
        check_same_data(saved, used.fingerprint, run)
    return score_dataset(
        student.to(place),
        _part(used, split),
        list(scores),
        teacher=teacher.to(place),
        batch_size=forward_batch(place),
        num_workers=config.workers,
        progress=progress,
        forward=scoring_forward(config),
    )


def _config(run: Path) -> TrainConfig:
    config = saved_config(run)
    if config is None:
        raise InputError(f"{run} is not a run directory (no config.yaml); give one that fastqat train made, such as runs/NAME")
    return config


def _part(used: RunData, split: str) -> Dataset:
    parts = {"pool": used.pool, "train": used.train, "test": used.test}
    if split not in parts:
        raise InputError(f"unknown split {split!r}; choose one of {', '.join(parts)}")
    return parts[split]


def _models(config: TrainConfig, run: Path, checkpoint: Path | None, used: RunData) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """The quantized model and the float model of a run, and the checkpoint of the former."""
    best, float_path = checkpoint or run / "checkpoints" / "best.pt", run / "checkpoints" / "float.pt"
    if config.float_checkpoint is not None:
        float_path = config.float_checkpoint
    teacher = new_model(config, used, torch.device("cpu"))
    load_weights(teacher, given_weights(float_path), float_path)
    student = make_student(config, teacher)
    saved = load_state(best)
    if "model" not in saved:
        raise CheckpointError(f"{best} is not a checkpoint of fastqat train; give one of {run}/checkpoints")
    load_weights(student, saved["model"], best)
    return student, teacher, saved
