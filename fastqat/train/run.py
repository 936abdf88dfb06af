"""A whole run: data, float model, quantization, training on the selected part, test, summary, report."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastqat._errors import CheckpointError, InputError
from fastqat.nn.calibration import calibrate
from fastqat.nn.param_groups import param_groups
from fastqat.selection.datasets import batches_of
from fastqat.selection.seeding import Stream, generator_for
from fastqat.train.checkpoint import CheckpointStore, load_state, load_weights
from fastqat.train.checks import check_backend, check_model, check_one_process
from fastqat.train.config import TrainConfig
from fastqat.train.engine import Distillation, cross_entropy
from fastqat.train.float_stage import float_model, given_weights, make_optimizer, new_model
from fastqat.train.folder import RunFolder
from fastqat.train.outcome import save_pictures, selection_arrays, summarise, write_page
from fastqat.train.policies import make_policy
from fastqat.train.pool import prepare_data
from fastqat.train.stage import Stage, StagePlan
from fastqat.train.student import make_student

CALIBRATION_BATCHES, CALIBRATION_BATCH = 8, 128


def train(config: TrainConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run `config` from start, or from where it stopped, to its end; everything it makes is in ``config.run_dir``.

    The test set is read once, at the very end, with the weights of the last epoch (``test_accuracy``), with those that were best on
    validation (``best_test_accuracy``) and with the float weights (``float_accuracy``).

    Args:
        config: the settings.
        say: told what goes on, line by line.

    Returns:
        The content of ``summary.json``; accuracies in [0, 1].

    Raises:
        DataError: the data set is missing or unusable.
        InputError: a setting is out of range, the model does not take the data, more than one process (torchrun), or the run exists
            and neither resume nor overwrite is set.
        CheckpointError: a checkpoint is of another architecture, of other settings or of other data, or all are damaged.
        OSError: the disk is full; what was written before is whole.

    Example:
        >>> import tempfile
        >>> config = TrainConfig(float_epochs=1, epochs=1, limit=200, runs=tempfile.mkdtemp(), report=False)
        >>> train(config, say=lambda line: None)["gradient_steps"]
        2
    """
    check_one_process()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = RunFolder(config.run_dir)
    resumed = folder.may_resume(config)
    if resumed and (finished := folder.read_summary()) is not None:
        say(f"run {config.run_dir} is finished")
        if config.report and not folder.has_page:
            write_page(folder, say)
        return finished
    run = Run(config, say)
    folder.open(config, resumed)
    return run.execute(folder, resumed)


class Run:
    """Data and models of one run, checked before anything is written."""

    def __init__(self, config: TrainConfig, say: Callable[[str], None]):
        self.config, self.say = config, say
        self.device = pick_device(config.device)
        check_backend(config, self.device)
        self.data = prepare_data(config, self.device)
        self.teacher = new_model(config, self.data, self.device)
        self._check()
        self.plan = StagePlan(
            name="qat",
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            amp=config.amp,
            channels_last=config.channels_last,
            device=self.device,
            val_interval=config.val_interval,
            workers=config.workers,
            progress=config.progress,
        )

    def _check(self) -> None:
        """Refuse before anything is written what would fail after the float stage."""
        config = self.config
        if config.float_checkpoint is not None:
            load_weights(self.teacher, given_weights(config.float_checkpoint), config.float_checkpoint)
        check_model(config, self.data, self.teacher, self.device)
        make_policy(config, self.data, make_student(config, self.teacher), self.teacher)

    def execute(self, folder: RunFolder, resumed: bool) -> dict[str, Any]:
        """All stages; returns the summary."""
        pool, test, config = len(self.data.labels), len(self.data.test), self.config  # type: ignore[arg-type]
        self.say(f"{config.run_dir}: {config.model} on {config.data}, {pool:,} samples to train on, {test:,} to test, {self.device}")
        float_rows = float_model(config, self.data, self.plan, self.teacher, folder, resumed, self.say)
        student = self._student()
        stage = self._stage(student, folder, float_rows)
        state = stage.fit(resumed)
        summary = summarise(config, self.data, student, state, stage.policy, self._test(stage))
        if config.report:
            save_pictures(folder, self.data, self.say)
        folder.write_summary(summary)
        if config.report:
            write_page(folder, self.say)
        return summary

    def _student(self) -> nn.Module:
        """The float model quantized and calibrated on the first samples of a seeded permutation of the pool."""
        student = make_student(self.config, self.teacher)
        if self.config.qconfig == "none":
            return student
        order = torch.randperm(len(self.data.labels), generator=generator_for(self.config.seed, Stream.CALIBRATION))
        chosen = order[: CALIBRATION_BATCHES * CALIBRATION_BATCH]
        batches = batches_of(self.data.pool, CALIBRATION_BATCH, indices=chosen, num_workers=self.config.workers)
        return calibrate(student, (x for x, _ in batches))

    def _stage(self, student: nn.Module, folder: RunFolder, float_rows: list[dict[str, Any]]) -> Stage:
        config = self.config
        groups = param_groups(student, config.lr, config.scale_lr, config.weight_decay)
        policy = make_policy(config, self.data, student, self.teacher)
        return Stage(
            self.plan,
            student,
            make_optimizer(config, groups, config.lr),
            policy,
            self.data.source,
            self.data.val,
            Distillation(self.teacher) if config.loss == "kd" else cross_entropy,
            CheckpointStore(folder.checkpoints, "epoch", self.say),
            data=self.data.fingerprint,
            best=folder.checkpoints / "best.pt",
            on_epoch=lambda state: folder.write_metrics([*float_rows, *state.rows]),
            on_select=lambda epoch: folder.write_selection(epoch, selection_arrays(policy, self.data)),
            say=self.say,
        )

    def _test(self, stage: Stage) -> dict[str, float | None]:
        """The one reading of the test set: float weights, weights of the last epoch, weights that were best on validation."""
        last = stage.evaluate(self.data.test).accuracy
        result: dict[str, float | None] = {"float_accuracy": stage.evaluate(self.data.test, self.teacher).accuracy, "test_accuracy": last}
        best = self._best(stage)
        return {**result, "best_test_accuracy": last if best is None else stage.evaluate(self.data.test, best).accuracy}

    def _best(self, stage: Stage) -> nn.Module | None:
        """The model that was best on validation; None where it is that of the last epoch, which stands in for a damaged one."""
        state = stage.state
        if stage.best is None or state.best_epoch in (-1, state.epoch):
            return None
        model = copy.deepcopy(stage.model)
        try:
            saved = load_state(stage.best)
            if saved.get("epoch") != state.best_epoch:
                raise CheckpointError(f"{stage.best} is of epoch {saved.get('epoch')}, not of the best one, {state.best_epoch}")
            load_weights(model, saved["model"], stage.best)
        except CheckpointError as error:
            self.say(f"{error} -- the last epoch counts as the best")
            state.best_epoch, state.best_accuracy = state.epoch, state.rows[-1]["val_accuracy"]
            return None
        return model


def pick_device(name: str) -> torch.device:
    """``auto`` is cuda where torch has it, else the CPU; InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); use auto or cpu") from error
