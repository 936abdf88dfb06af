"""Score a data set with the model of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._distributed import world
from fastqat._errors import CheckpointError, InputError
from fastqat.selection.folds import out_of_sample
from fastqat.selection.scorer import MAX_BYTES, score_dataset
from fastqat.selection.scores.registry import get_score
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache
from fastqat.train.checkpoint import check_same_data, load_state, load_weights
from fastqat.train.checks import check_backend
from fastqat.train.config import TrainConfig
from fastqat.train.devices import pick_device
from fastqat.train.float_stage import float_model, given_weights, new_model, teacher_config
from fastqat.train.folder import RunFolder, saved_config
from fastqat.train.outcome import save_label_issues
from fastqat.train.policies import scoring_forward
from fastqat.train.pool import RunData, part_of, prepare_data
from fastqat.train.run import plan_of
from fastqat.train.stage import forward_batch
from fastqat.train.student import make_student


def score_run(
    run: Path,
    scores: tuple[str, ...] | None = None,
    *,
    data: str | None = None,
    split: str = "pool",
    checkpoint: Path | None = None,
    features: str | None = None,
    teacher_cache: Path | None = None,
    max_bytes: int = MAX_BYTES,
    resume: Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> ScoreTable:
    """Score every sample of a data set with the quantized model of the run directory `run`, with the teacher of the run.

    Args:
        run: a run directory.
        scores: names from `fastqat.selection.list_scores`; None: ``evs`` and ``ds``. Those of a whole training (``aum``, ``forgetting``,
            ...) are of the float stage, as ``RUN/dynamics.npz`` has them, and of the run's own pool only.
        data: name of the data set; None: the run's own.
        split: ``"pool"``: the samples that the run chose from, in the order that the indices of its selections count in;
            ``"train"``, ``"test"``: the whole training or test set.
        checkpoint: None: the run's best.
        features: what to keep of each sample, see `fastqat.selection.score_dataset`.
        teacher_cache: file that keeps the float model's logits, see `fastqat.selection.TeacherCache`.
        max_bytes: most bytes of features, see `fastqat.selection.score_dataset`.
        resume: file that keeps the progress of a pass that takes long: a killed call goes on there; removed at the end.
        device: as for training.
        progress: show a bar on a terminal.

    Raises:
        InputError: `run` is no run directory, unknown split or score, a score of a whole training that the run has not.
        CheckpointError: the checkpoint is missing, damaged, of other shapes than the data, or the run's pool has changed.
    """
    config, place, names = _config(run), pick_device(device), list(scores or ("evs", "ds"))
    recorded = _recorded(run, names, "" if split == "pool" and data is None else data or split)
    passed = [name for name in names if name not in recorded]
    check_backend(config, place)
    used = prepare_data(_on(config, data), place)
    student, teacher, saved = _models(config, run, checkpoint, used)
    if split == "pool" and data is None:
        check_same_data(saved, used.fingerprint, run)
    if not passed and features is None:
        return ScoreTable(recorded, used.labels)
    table = score_dataset(
        student.to(place),
        _part(used, split),
        passed or ["entropy"],
        teacher=TeacherCache(teacher.to(place), path=teacher_cache),
        features=features,
        batch_size=forward_batch(place),
        num_workers=config.workers,
        progress=progress,
        forward=scoring_forward(config),
        max_bytes=max_bytes,
        checkpoint=resume,
    )
    return ScoreTable({**(table if passed else {}), **recorded}, table.labels, table.features)


def score_folds(
    run: Path,
    folds: int,
    scores: tuple[str, ...] | None = None,
    *,
    data: str | None = None,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> ScoreTable:
    """Score every sample of the run's pool with a float model that was trained, with the run's settings, on the parts it is not in.

    The models are kept in ``RUN/folds`` and in the cache of float models, so that a killed call goes on where it was and a second one
    trains nothing. Its report then shows the labels that these models doubt.

    Args:
        run: a run directory.
        folds: number of parts, at least 2.
        scores: names of scores that need no teacher; None: ``evs``, ``loss`` and ``margin``.
        data: name of the data set; None: the run's own.
        device, progress: as for training.
        say: told what goes on, line by line.

    Returns:
        `ScoreTable` with the probabilities as its features: what `fastqat.selection.find_label_issues` takes.

    Raises:
        InputError: as `score_run`; fewer than two folds; a score that compares with a teacher or is of a whole training.
    """
    names = list(scores or ("evs", "loss", "margin"))
    _check_without_teacher(names)
    config, place = _config(run), pick_device(device)
    alone: dict[str, Any] = {"float_checkpoint": None, "teacher": None, "teacher_checkpoint": None, "oracle_teacher": False}
    config = replace(_on(config, data), **alone, progress=progress)
    used = prepare_data(config, place)

    def train(indices: Tensor, fold: int) -> nn.Module:
        part = part_of(used, indices, f"fold {fold} of {folds}")
        say(f"fold {fold + 1} of {folds}: {len(indices):,} samples to train on")
        model, folder = new_model(config, part, place), RunFolder(run / "folds" / f"{fold + 1}_of_{folds}")
        float_model(config, part, plan_of(config, place), model, folder, True, say)
        return model

    table = out_of_sample(
        train,
        used.pool,
        folds,
        scores=names,
        labels=used.labels,
        seed=config.used_float_seed,
        batch_size=forward_batch(place),
        num_workers=config.workers,
        progress=progress,
        forward=scoring_forward(config),
    )
    if data is None and world().rank == 0:
        save_label_issues(RunFolder(run), used, table, "confident")
    return table


def _config(run: Path) -> TrainConfig:
    config = saved_config(run)
    if config is None:
        raise InputError(f"{run} is not a run directory (no config.yaml); give one that fastqat train made, such as runs/NAME")
    return config


def _on(config: TrainConfig, data: str | None) -> TrainConfig:
    """`config` with the data set `data` and its labels as they are, or with its own for None."""
    return config if data is None else replace(config, data=data, label_noise=0.0, oracle_teacher=False)


def _recorded(run: Path, names: list[str], other: str) -> dict[str, Tensor]:
    """Those of `names` that are of a whole training: of the float stage of `run`, for its own pool, not for the data called `other`."""
    asked = [name for name in names if get_score(name).stage == "dynamics"]
    if not asked:
        return {}
    told = f"{', '.join(asked)}: scores of a whole training"
    if other:
        raise InputError(f"{told}; the run recorded that of its own pool, not of {other}; leave out data and split, or these scores")
    path = RunFolder(run).dynamics
    if not path.is_file():
        raise InputError(f"{told}; {run} has no {path.name}: its float weights came from a file, or it had no float epoch")
    table = ScoreTable.load(path)
    if missing := [name for name in asked if name not in table]:
        raise InputError(f"{path} has no {', '.join(missing)}; it has {', '.join(table)}; feed a DynamicsRecorder in a loop of your own")
    return {name: table[name] for name in asked}


def _check_without_teacher(names: list[str]) -> None:
    """Refuse, before anything is trained, scores that the float model of a fold cannot give."""
    for name in names:
        score = get_score(name)
        if "teacher" in score.needs:
            raise InputError(f"score {name!r} compares with a teacher, and the float models of folds have none; leave it or folds out")
        if score.stage == "dynamics":
            raise InputError(f"score {name!r} is of a whole training, not of the models of folds; ask for it without folds")


def _part(used: RunData, split: str) -> Dataset:
    parts = {"pool": used.pool, "train": used.train, "test": used.test}
    if split not in parts:
        raise InputError(f"unknown split {split!r}; choose one of {', '.join(parts)}")
    return parts[split]


def _models(config: TrainConfig, run: Path, checkpoint: Path | None, used: RunData) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """The quantized model and the teacher of a run, and the checkpoint of the former."""
    best, other = checkpoint or run / "checkpoints" / "best.pt", teacher_config(config)
    float_net = _with_weights(config, used, run / "checkpoints" / "float.pt")
    teacher = float_net if other is None else _with_weights(other, used, run / "checkpoints" / "teacher.pt")
    student = make_student(config, float_net)
    saved = load_state(best)
    if "model" not in saved:
        raise CheckpointError(f"{best} is not a checkpoint of fastqat train; give one of {run}/checkpoints")
    load_weights(student, saved["model"], best)
    return student, teacher, saved


def _with_weights(config: TrainConfig, used: RunData, path: Path) -> nn.Module:
    """The float model of `config` with its given weights, else with those in `path`."""
    model, path = new_model(config, used, torch.device("cpu")), config.float_checkpoint or path
    load_weights(model, given_weights(path), path)
    return model
