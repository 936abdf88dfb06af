"""Score a data set with the model of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fastqat._errors import CheckpointError, InputError
from fastqat.data import load
from fastqat.nn.convert import quantize
from fastqat.selection.scorer import score_dataset
from fastqat.selection.table import ScoreTable
from fastqat.train.checkpoint import load_state, load_weights
from fastqat.train.config import TrainConfig
from fastqat.train.folder import saved_config
from fastqat.train.models import make_model
from fastqat.train.policies import scoring_forward
from fastqat.train.run import pick_device
from fastqat.train.stage import forward_batch


def score_run(
    run: Path,
    scores: tuple[str, ...] = ("evs", "ds"),
    *,
    data: str | None = None,
    split: str = "train",
    checkpoint: Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> ScoreTable:
    """Score every sample of a data set with the quantized model of the run directory `run`, its float model as the teacher.

    Args:
        run: a run directory.
        scores: names from `fastqat.selection.list_scores`.
        data: name of the data set; None: the run's own.
        split: ``"train"`` or ``"test"``.
        checkpoint: None: the run's best.
        device: as for training.
        progress: show a bar on a terminal.

    Raises:
        InputError: `run` is no run directory, unknown score, or data of another shape or number of classes.
        CheckpointError: the run has no such checkpoint, or it is damaged or of another architecture.
    """
    config = saved_config(run)
    if config is None:
        raise InputError(f"{run} is not a run directory (no config.yaml); give one that fastqat train made, such as runs/NAME")
    splits = load(data or config.data, config.data_root, image_size=config.image_size)
    place = pick_device(device)
    student, teacher = _models(config, run, checkpoint, splits.num_classes, splits.input_shape)
    dataset = splits.train if split == "train" else splits.test
    dataset = dataset.to(place) if hasattr(dataset, "to") else dataset
    return score_dataset(
        student.to(place),
        dataset,
        list(scores),
        teacher=teacher.to(place),
        batch_size=forward_batch(place),
        num_workers=config.workers,
        progress=progress,
        forward=scoring_forward(config),
    )


def _models(
    config: TrainConfig, run: Path, checkpoint: Path | None, num_classes: int, input_shape: tuple[int, ...]
) -> tuple[nn.Module, nn.Module]:
    """The quantized model and the float model of a run."""
    best, float_path = checkpoint or run / "checkpoints" / "best.pt", run / "checkpoints" / "float.pt"
    if config.float_checkpoint is not None:
        float_path = config.float_checkpoint
    teacher = make_model(config.model, num_classes, input_shape)
    state = load_state(float_path)
    load_weights(teacher, state.get("model", state), float_path)
    teacher = teacher.to(memory_format=torch.channels_last) if config.channels_last else teacher  # type: ignore[call-overload]
    student = teacher if config.qconfig == "none" else quantize(teacher, config.qconfig)
    saved = load_state(best)
    if "model" not in saved:
        raise CheckpointError(f"{best} is not a checkpoint of fastqat train; give one of {run}/checkpoints")
    load_weights(student, saved["model"], best)
    return student, teacher
