"""A whole run of a detector: float model, quantization, training on the selected pictures, average precision, summary."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fastqat
from fastqat._errors import CheckpointError, DataError, InputError
from fastqat._torchrun import asked_for
from fastqat.methods import ACS
from fastqat.nn.config import QConfig
from fastqat.nn.param_groups import param_groups
from fastqat.selection.policies import RS2, RandomSubset, ScoredSubset, SelectionPolicy, WholeSet
from fastqat.selection.seeding import Stream, generator_for
from fastqat.train.checkpoint import CheckpointStore, check_same_data, load_state, load_weights, save_state
from fastqat.train.detection.coco import CocoFolder
from fastqat.train.detection.config import DetectorConfig
from fastqat.train.detection.models import calibrate_detector, check_retinanet, make_detector, quantize_detector
from fastqat.train.detection.precision import MEASURES, check_pycocotools
from fastqat.train.detection.scores import score_pictures
from fastqat.train.detection.stage import COLUMNS, DetectorPlan, DetectorStage
from fastqat.train.devices import pick_device
from fastqat.train.float_stage import given_weights
from fastqat.train.folder import RunFolder
from fastqat.train.models import count_parameters
from fastqat.train.outcome import source_commit
from fastqat.train.policies import finish_over


def train_detector(config: DetectorConfig, *, model: nn.Module | None = None, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run `config` from start, or from where it stopped, to its end; everything it makes is in ``config.run_dir``.

    The float model is trained on all pictures (or given), quantized (`quantize_detector`), calibrated, and trained on with the pictures
    that selection picks, which `score_pictures` scores. In the folder: config.yaml, metrics.csv (a row per epoch; ``lr`` is of its last
    step), selections/ (indices, picture ids, scores), checkpoints/ (float.pt, best.pt, the last two epochs) and, at the end, summary.json.
    A run that was killed at any moment and is resumed comes to the same bits. One process.

    Every selection runs the quantized model over all pictures, and where DS counts the float model too, as often: the outputs for a hundred
    thousand anchors per picture are too many to keep, as ACS keeps the teacher's logits elsewhere. ``scoring_forwards`` counts both.

    Args:
        config: the settings.
        model: a float RetinaNet of your own in place of ``config.model``, trained in place (``float_epochs=0``: taken as it is); give the
            same one to resume.
        say: told what goes on, line by line.

    Returns:
        The content of ``summary.json``. Average precisions (see `average_precision`) in [0, 1] or None: ``float_ap``, ``ap``, ``ap50``, ...
        of the last epoch, ``best_ap`` of the best epoch, which is chosen on the same pictures and so too high by a little.

    Raises:
        DataError: the folder is not in COCO's layout, see `CocoFolder`, or its splits have other categories.
        InputError: a setting is out of range, torchvision or pycocotools is missing, or the run exists and neither resume nor overwrite is
            set.
        CheckpointError: a checkpoint is of another architecture, of other settings or of other data, or all are damaged.
        OSError: the disk is full; what was written before is whole.
    """
    if asked_for() > 1:
        raise InputError(f"detectors are trained in one process; got WORLD_SIZE={asked_for()}; start it without torchrun")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = RunFolder(config.run_dir, COLUMNS)
    resumed = folder.may_resume(config)
    if resumed and (finished := folder.read_summary()) is not None:
        say(f"run {config.run_dir} is finished")
        return finished
    run = _Run(config, model, say)
    folder.open(config, resumed)
    return run.execute(folder, resumed)


class _Run:
    """Data and models of one run, checked before anything is written."""

    def __init__(self, config: DetectorConfig, model: nn.Module | None, say: Callable[[str], None]):
        self.config, self.say, self.device = config, say, pick_device(config.device)
        self.data = CocoFolder(config.data, config.train_split, limit=config.limit, workers=config.workers)
        self.val = self._val()
        torch.manual_seed(config.seed)
        self.teacher = (self._new() if model is None else model).to(self.device)
        self._check_classes()
        if config.float_checkpoint is not None:
            _load_given(self.teacher, config.float_checkpoint)
        self._policy(self._quantized())  # refuses now what it would refuse after the float stage

    def _check_classes(self) -> None:
        check_retinanet(self.teacher)
        classes = self.teacher.get_submodule("head.classification_head").num_classes
        assert isinstance(classes, int)
        if classes < self.data.num_classes:
            raise InputError(
                f"the model has {classes} classes and the category ids go up to {self.data.num_classes - 1}; give it num_classes="
                f"{self.data.num_classes} or more"
            )

    def _val(self) -> CocoFolder | None:
        if self.config.val_split is None:
            return None
        check_pycocotools()
        config = self.config
        val = CocoFolder(config.data, str(config.val_split), keep_empty=True, limit=config.val_limit, workers=config.workers)
        if val.categories != self.data.categories:
            raise DataError(f"{val.annotations} has other categories than {self.data.annotations}; ids and names must be the same")
        return val

    def _new(self) -> nn.Module:
        config = self.config
        return make_detector(
            config.model,
            self.data.num_classes,
            min_size=config.min_size,
            max_size=config.max_size,
            frozen_norm=config.frozen_norm,
            trainable_layers=config.trainable_layers,
        )

    def _quantized(self) -> nn.Module:
        if self.config.qconfig == "none":
            return copy.deepcopy(self.teacher)
        return quantize_detector(self.teacher, QConfig.parse(self.config.qconfig))

    def _policy(self, student: nn.Module) -> SelectionPolicy:
        config = self.config
        if config.select == "none" or config.epochs == 0:
            return WholeSet(self.data, seed=config.seed)
        drawn: dict[str, Any] = {"fraction": config.fraction, "balanced": False, "seed": config.seed}
        if config.select == "rs2":
            return RS2(self.data, **drawn)
        if config.select == "random":
            return RandomSubset(self.data, interval=config.interval, **drawn)
        passes: dict[str, Any] = {"scorer": score_pictures, "bn_reestimate": config.bn_reestimate, "amp": config.amp}
        passes |= {"batch_size": config.batch_size, "progress": config.progress}
        calendar = {"epochs": config.epochs, "interval": config.interval, "first_select": config.first_select}
        scored = {"score_view": self.data, **drawn, **calendar, **passes}
        if config.select == "acs":
            return ACS(self.data, student, self.teacher, schedule=config.schedule, **scored)
        return ScoredSubset(self.data, student, self.teacher, score=config.select, **scored)

    def execute(self, folder: RunFolder, resumed: bool) -> dict[str, Any]:
        """All stages; returns the summary."""
        config = self.config
        self.say(f"{config.run_dir}: {config.model}, {len(self.data):,} pictures to train on, {self.device}")
        float_rows = self._float_stage(folder, resumed)
        student = self._quantized()
        if config.qconfig != "none":
            order = torch.randperm(len(self.data), generator=generator_for(config.seed, Stream.CALIBRATION))
            calibrate_detector(student, self.data.batches(config.batch_size, order[: config.calibration_pictures]))
        policy = self._policy(student)
        groups = param_groups(student, config.lr, config.scale_lr, config.weight_decay)
        stage = DetectorStage(
            self._plan("qat", config.epochs, 0),
            student,
            self._optimizer(groups),
            policy,
            self.data,
            self.val,
            self.teacher if config.loss == "kd" else None,
            CheckpointStore(folder.checkpoints, "epoch", self.say),
            best=folder.checkpoints / "best.pt",
            finish=lambda: self._finish(student, policy),
            on_epoch=lambda state: folder.write_metrics([*float_rows, *state.rows]),
            on_select=lambda epoch: folder.write_selection(epoch, self._arrays(policy)),
            say=self.say,
        )
        stage.fit(resumed)
        summary = self._summary(stage, float_rows)
        folder.write_summary(summary)
        return summary

    def _finish(self, student: nn.Module, policy: SelectionPolicy) -> None:
        config = self.config
        reading = {"batch_size": config.batch_size, "progress": config.progress}
        finish_over(self.data, student, policy, (config.bn_reestimate, config.seed, config.epochs), reading)

    def _float_stage(self, folder: RunFolder, resumed: bool) -> list[dict[str, Any]]:
        """Give the teacher its weights; returns the rows of their training."""
        config, own = self.config, folder.checkpoints / "float.pt"
        if config.float_checkpoint is not None:
            self.say(f"float weights from {config.float_checkpoint}")
            return []
        if resumed and (saved := self._saved(own)) is not None:
            check_same_data(saved, self.data.fingerprint, own)
            load_weights(self.teacher, saved["model"], own)
            return saved["rows"]
        store = CheckpointStore(folder.checkpoints, "float", self.say)
        stage = DetectorStage(
            self._plan("float", config.float_epochs, config.warmup_steps),
            self.teacher,
            self._optimizer(param_groups(self.teacher, config.float_lr, weight_decay=config.weight_decay)),
            WholeSet(self.data, seed=config.seed),
            self.data,
            self.val,
            None,
            store,
            on_epoch=lambda state: folder.write_metrics(state.rows),
            say=self.say,
        )
        rows = stage.fit(resumed).rows
        save_state(own, {"data": self.data.fingerprint, "model": self.teacher.state_dict(), "rows": rows})
        store.clear()
        return rows

    def _saved(self, path: Path) -> dict[str, Any] | None:
        """The float model of this run; None when it is not there yet, or damaged: it is then trained again, to the same bits."""
        try:
            return load_state(path) if path.is_file() else None
        except CheckpointError as error:
            self.say(f"{error} -- trained again")
            return None

    def _plan(self, name: str, epochs: int, warmup: int) -> DetectorPlan:
        config = self.config
        return DetectorPlan(
            name=name,
            epochs=epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            amp=config.amp,
            channels_last=False,
            device=self.device,
            val_interval=config.val_interval,
            workers=config.workers,
            progress=config.progress,
            warmup_steps=warmup,
            flip=config.flip,
            max_grad_norm=config.max_grad_norm,
        )

    def _optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.config.optimizer == "adam":
            return torch.optim.Adam(groups)
        return torch.optim.SGD(groups, momentum=self.config.momentum, nesterov=self.config.momentum > 0)

    def _arrays(self, policy: SelectionPolicy) -> dict[str, np.ndarray]:
        """One selection file: ``indices`` (best first), ``image_ids`` and ``score_<name>`` of all pictures."""
        assert policy.selection is not None
        scores = {} if policy.table is None else {f"score_{name}": policy.table[name].numpy() for name in policy.table}
        return {"indices": policy.selection.indices.numpy(), "image_ids": np.array(self.data.image_ids), **scores}

    def _measured(self, stage: DetectorStage, float_rows: list[dict[str, Any]]) -> dict[str, float]:
        """Average precisions of the float model, of the last epoch and of the best; NaN where nothing was measured."""
        if self.val is None:
            return dict.fromkeys(("float_ap", *MEASURES, "best_ap"), math.nan)
        # The float stage ends with an evaluation: weights that were given have none.
        float_ap = float_rows[-1]["ap"] if float_rows else stage.evaluate(self.val, self.teacher).accuracy
        if not stage.precision:  # no epoch in this process: 0 epochs, or resumed after the last
            stage.evaluate(self.val)
        best = stage.state.best_accuracy
        return {"float_ap": float_ap, **stage.precision, "best_ap": math.nan if best < 0 else best}

    def _summary(self, stage: DetectorStage, float_rows: list[dict[str, Any]]) -> dict[str, Any]:
        config, state, policy = self.config, stage.state, stage.policy
        measured = self._measured(stage, float_rows)
        told = ("model", "qconfig", "select", "interval", "schedule", "loss", "seed", "epochs")
        return {
            "dataset": str(config.data),
            **{name: getattr(config, name) for name in told},
            "fraction": 1.0 if config.select == "none" else config.fraction,
            **{name: None if math.isnan(value) else value for name, value in measured.items()},
            "best_epoch": state.best_epoch,
            "gradient_steps": state.steps,
            "scoring_forwards": policy.scoring_forwards,
            "unique_samples": int(state.seen.sum()),
            "seconds": state.seconds,
            "selection_seconds": policy.selection_seconds,
            "params": count_parameters(stage.model),
            "categories": {str(number): name for number, name in self.data.categories.items()},
            "commit": source_commit(),
            "torch": torch.__version__,
            "fastqat": fastqat.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "threads": torch.get_num_threads(),
        }


def _load_given(model: nn.Module, path: Path) -> None:
    """Load the state_dict in `path`; torchvision's own loading knows the names that its published weights have.

    Raises:
        CheckpointError: it is damaged or of another architecture.
    """
    try:
        model.load_state_dict(given_weights(path))
    except RuntimeError as error:
        told = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} is of another architecture: {told}; use the model, categories and norms that it has") from error
