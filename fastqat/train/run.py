"""A whole run: data, float model, quantization, training on the selected part, test, summary, report."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from fastqat._distributed import all_succeed, on_first, world
from fastqat._errors import CheckpointError, InputError
from fastqat._torchrun import started
from fastqat.data import subset
from fastqat.nn.calibration import calibrate
from fastqat.nn.param_groups import param_groups
from fastqat.selection.datasets import batches_of
from fastqat.selection.reweighting import reweighting_line
from fastqat.selection.scorer import score_dataset
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.table import ScoreTable
from fastqat.train.checkpoint import CheckpointStore, load_state, load_weights
from fastqat.train.checks import check_backend, check_model, check_objective, check_processes
from fastqat.train.config import TrainConfig
from fastqat.train.devices import pick_device
from fastqat.train.float_stage import float_model, given_weights, make_optimizer, new_model, teacher_config
from fastqat.train.folder import RunFolder
from fastqat.train.objective import make_objective
from fastqat.train.outcome import save_label_issues, save_pictures, selection_arrays, source_commit, summarise, write_page
from fastqat.train.parallel import digest
from fastqat.train.policies import finish_policy, make_policy, scoring_forward
from fastqat.train.pool import RunData, prepare_data
from fastqat.train.stage import Stage, StagePlan, forward_batch
from fastqat.train.student import make_student

CALIBRATION_BATCHES, CALIBRATION_BATCH = 8, 128
BOUND_SAMPLES = 512


DataOf: TypeAlias = Callable[[TrainConfig, torch.device], RunData]
"""How a run gets its data, as `prepare_data` does."""


def train(config: TrainConfig, say: Callable[[str], None] = print, *, data_of: DataOf | None = None) -> dict[str, Any]:
    """Run `config` from start, or from where it stopped, to its end; everything it makes is in ``config.run_dir``.

    The test set is read once, at the very end, with the weights of the last epoch (``test_accuracy``), with those that were best on
    validation (``best_test_accuracy``) and with the float weights (``float_accuracy``).

    Under torchrun every process calls it, with the same settings. Each batch is dealt to all of them, so that the steps are as many as in
    one process; process 0 alone reads checkpoints, writes and tells. A run that is resumed with as many processes as before comes to the
    same bits. From the same weights any number of processes selects the samples that one selects. But the weights of two runs with
    different numbers of processes are not the same: batch norm in training normalises by each process's part of the batch (``sync_bn``,
    on GPUs, by all of it), and sums of gradients differ in their last bits. So selections by scores differ in part of their samples once
    training has begun, float training included. A process that waits for another one longer than the environment's ``FASTQAT_TIMEOUT``, in
    seconds (1800 without it; of a group of your own: than its timeout), ends the run: raise it where one has that much more to do.

    Args:
        config: the settings.
        say: told what goes on, line by line, by process 0. An error that it raises ends the run there, to be resumed.
        data_of: gives the data in place of `prepare_data`; a program that does many runs may keep them.

    Returns:
        The content of ``summary.json``; accuracies in [0, 1].

    Raises:
        DataError: the data set is missing or unusable.
        InputError: a setting is out of range, the model does not take the data, or the run exists and neither resume nor overwrite
            is set.
        CheckpointError: a checkpoint is of another architecture, of other settings or of other data, or all are damaged.
        ProcessError: another process failed (its message is in this one) or is gone; the run can be resumed.
        OSError: the disk is full; what was written before is whole.

    Example:
        >>> import tempfile
        >>> config = TrainConfig(float_epochs=1, epochs=1, limit=200, runs=tempfile.mkdtemp(), report=False)
        >>> train(config, say=lambda line: None)["gradient_steps"]
        2
    """
    with started() as here:
        if here.rank:
            config, say = replace(config, progress=False), _nothing
        return _train(config, say, data_of)


def _nothing(line: str) -> None:
    """What is said by the processes that are not the first."""


def _train(config: TrainConfig, say: Callable[[str], None], data_of: DataOf | None) -> dict[str, Any]:
    check_processes(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = RunFolder(config.run_dir)
    resumed = on_first(lambda: folder.may_resume(config))
    if resumed and (finished := on_first(folder.read_summary)) is not None:
        say(f"run {config.run_dir} is finished")
        if config.report:
            on_first(lambda: None if folder.has_page else write_page(folder, say))
        return finished
    with all_succeed():
        run = Run(config, say, data_of)
    on_first(lambda: folder.open(config, resumed))
    return run.execute(folder, resumed)


class Run:
    """Data and models of one run, checked before anything is written."""

    def __init__(self, config: TrainConfig, say: Callable[[str], None], data_of: DataOf | None = None):
        source_commit()  # remembered now: it is that of the code which runs
        self.config, self.say = config, say
        self.device = pick_device(config.device)
        check_backend(config, self.device)
        self.data = (data_of or prepare_data)(config, self.device)
        self.float_net = new_model(config, self.data, self.device)
        self.teacher_config = teacher_config(config)
        self.teacher = self.float_net if self.teacher_config is None else new_model(self.teacher_config, self.data, self.device)
        self._check()
        self.plan = plan_of(config, self.device)

    def _check(self) -> None:
        """Refuse before anything is written what would fail after the float stage."""
        for config, net in ((self.config, self.float_net), (self.teacher_config, self.teacher)):
            if config is None:
                continue
            if config.float_checkpoint is not None:
                load_weights(net, given_weights(config.float_checkpoint), config.float_checkpoint)
            check_model(config, self.data, net, self.device)
        make_policy(self.config, self.data, make_student(self.config, self.float_net), self.teacher)
        check_objective(self.config, self.data, self.float_net, self.teacher, self.device)

    def execute(self, folder: RunFolder, resumed: bool) -> dict[str, Any]:
        """All stages; returns the summary."""
        pool, test, config = len(self.data.labels), len(self.data.test), self.config  # type: ignore[arg-type]  # no __len__ in Dataset
        place = str(self.device) if world().size == 1 else f"{world().size} processes on {self.device.type}"
        self.say(f"{config.run_dir}: {config.model} on {config.data}, {pool:,} samples to train on, {test:,} to test, {place}")
        float_rows = self._float_stages(folder, resumed)
        student = self._student()
        if config.rho and not resumed and config.epochs:
            self._say_bound(student)
        stage = self._stage(student, folder, float_rows)
        state = stage.fit(resumed)
        tests = self._test(stage)
        summary = summarise(config, self.data, self.float_net, student, state, stage.policy, tests)
        return on_first(lambda: self._conclude(folder, summary))

    def _float_stages(self, folder: RunFolder, resumed: bool) -> list[dict[str, Any]]:
        """Train the float model, and the teacher where it is another, or load them; returns the rows of their metrics."""
        rows: list[dict[str, Any]] = []
        taught = self.data.clean if self.config.oracle_teacher and self.data.clean is not None else self.data
        stages = (("float", self.config, self.float_net, self.data), ("teacher", self.teacher_config, self.teacher, taught))
        for name, config, net, data in stages:
            if config is None:
                continue
            if config.sync_bn and world().size > 1:
                nn.SyncBatchNorm.convert_sync_batchnorm(net)  # replaces its layers in place
            rows += float_model(config, data, self.plan, net, folder, resumed, self.say, name=name, before=rows)
        return rows

    def _say_bound(self, student: nn.Module) -> None:
        """Tell ρ, what reweighting by gradient norm could gain at best, from a random part of the pool."""
        order = torch.randperm(len(self.data.labels), generator=generator_for(self.config.seed, Stream.BOUND))[:BOUND_SAMPLES]
        part, place = subset(self.data.pool, order.sort().values), forward_batch(self.device)
        try:
            table = score_dataset(student, part, "grand", batch_size=place, progress=False, forward=scoring_forward(self.config))
        except InputError as error:
            self.say(f"rho is not known: {error}")
            return
        self.say(f"{reweighting_line('gradient norms of ' + format(len(order), ',') + ' samples', table['grand'])}")

    def _conclude(self, folder: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
        """Write the last files; returns the summary."""
        if self.config.report:
            save_pictures(folder, self.data, self.say)
            if folder.dynamics.is_file():
                save_label_issues(folder, self.data, ScoreTable.load(folder.dynamics), "aum")
        folder.write_summary(summary)
        if self.config.report:
            write_page(folder, self.say)
        return summary

    def _student(self) -> nn.Module:
        """The float model quantized and calibrated on the first samples of a seeded permutation of the pool."""
        student = make_student(self.config, self.float_net)
        if self.config.qconfig == "none":
            return student
        order = torch.randperm(len(self.data.labels), generator=generator_for(self.config.seed, Stream.CALIBRATION))
        chosen = order[: CALIBRATION_BATCHES * CALIBRATION_BATCH]
        batches = batches_of(self.data.pool, CALIBRATION_BATCH, indices=chosen, num_workers=self.config.workers)
        return calibrate(student, (x for x, _ in batches))

    def _stage(self, student: nn.Module, folder: RunFolder, float_rows: list[dict[str, Any]]) -> Stage:
        config = self.config
        rates = {"scale_lr": config.scale_lr, "activation_scale_lr": config.activation_scale_lr}
        groups = param_groups(student, config.lr, weight_decay=config.weight_decay, **rates)
        policy = make_policy(config, self.data, student, self.teacher)
        return Stage(
            self.plan,
            student,
            make_optimizer(config, groups, config.lr),
            policy,
            self.data.source,
            self.data.val,
            make_objective(config, student, self.teacher),
            CheckpointStore(folder.checkpoints, "epoch", self.say),
            data=self.data.fingerprint,
            best=folder.checkpoints / "best.pt",
            finish=lambda: finish_policy(config, self.data, student, policy),
            wrong=self.data.wrong,
            on_epoch=lambda state: folder.write_metrics([*float_rows, *state.rows]),
            on_select=lambda epoch: folder.write_selection(epoch, selection_arrays(policy, self.data)),
            say=self.say,
        )

    def _test(self, stage: Stage) -> dict[str, float | None]:
        """The one reading of the test set: float weights, teacher, weights of the last epoch, weights that were best on validation."""
        last = stage.evaluate(self.data.test).accuracy
        result: dict[str, float | None] = {"float_accuracy": self._float_accuracy(stage), "test_accuracy": last}
        if self.teacher_config is not None:
            result["teacher_accuracy"] = stage.evaluate(self.data.test, self.teacher).accuracy
        best = self._best(stage)
        return {**result, "best_test_accuracy": last if best is None else stage.evaluate(self.data.test, best).accuracy}

    def _float_accuracy(self, stage: Stage) -> float:
        """What the float weights reach on the test set; read once for all runs that share them and the data in this process."""
        key, known = (digest(self.float_net.state_dict().values()), stage.plan.amp, stage.plan.channels_last), self.data.float_accuracy
        if key not in known:
            known[key] = stage.evaluate(self.data.test, self.float_net).accuracy
        return known[key]

    def _best(self, stage: Stage) -> nn.Module | None:
        """The model that was best on validation; None where it is that of the last epoch, which stands in for a damaged one."""
        state, best = stage.state, stage.best
        if best is None or state.best_epoch in (-1, state.epoch):
            return None
        model, (saved, problem) = copy.deepcopy(stage.model), on_first(lambda: _read(best))
        try:
            if problem or saved.get("epoch") != state.best_epoch:
                raise CheckpointError(problem or f"{best} is of epoch {saved.get('epoch')}, not of the best one, {state.best_epoch}")
            load_weights(model, saved["model"], best)
        except CheckpointError as error:
            self.say(f"{error} -- the last epoch counts as the best")
            state.best_epoch, state.best_accuracy = state.epoch, state.rows[-1]["val_accuracy"]
            return None
        return model


def plan_of(config: TrainConfig, device: torch.device) -> StagePlan:
    """How the QAT stage of `config` goes on `device`; the float stage changes what is its own."""
    return StagePlan(
        name="qat",
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        amp=config.amp,
        channels_last=config.channels_last,
        device=device,
        val_interval=config.val_interval,
        workers=config.workers,
        progress=config.progress,
        checkpoint_seconds=config.checkpoint_seconds,
    )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The checkpoint at `path` and what is wrong with it, which leaves it empty."""
    try:
        return load_state(path), ""
    except CheckpointError as error:
        return {}, str(error)
