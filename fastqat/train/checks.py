"""What would fail in the middle of a run, found before anything is written."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastqat._backend import NATIVE_REASON, pick
from fastqat._distributed import world
from fastqat._errors import FastqatError, InputError
from fastqat._info import active_cpu_level
from fastqat.selection.datasets import batches_of
from fastqat.train.config import TrainConfig
from fastqat.train.engine import laid_out
from fastqat.train.objective import CorrectedObjective, make_objective
from fastqat.train.pool import RunData

# What models raise for pictures that they cannot take.
_UNFIT = (RuntimeError, ValueError, AssertionError, TypeError, IndexError, AttributeError)


def check_processes(config: TrainConfig) -> None:
    """Refuse settings that several processes cannot share.

    Raises:
        InputError: a batch with less than two samples for each process, which batch norm needs; sync_bn without GPUs.
    """
    processes = world().size
    for name in ("batch_size", "float_batch_size"):
        size = getattr(config, name)
        if size < 2 * processes and processes > 1:
            raise InputError(f"{name} is that of all {processes} processes, at least 2 for each; got {size}; start fewer or raise it")
    if config.sync_bn and processes > 1 and (config.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("sync_bn needs GPUs (torch.nn.SyncBatchNorm has no CPU code); leave it out, or use larger batches on the CPU")


def check_backend(config: TrainConfig, device: torch.device) -> None:
    """Refuse a backend or a CPU level of the environment that cannot run here.

    Raises:
        FastqatError: one of these; says which variable to change.
    """
    if config.qconfig == "none":
        return
    if NATIVE_REASON is None and device.type == "cpu":
        active_cpu_level()
    try:
        pick("fake_quant", torch.empty(1, device=device))
    except RuntimeError as error:
        raise error if isinstance(error, FastqatError) else InputError(str(error)) from error


def check_model(config: TrainConfig, data: RunData, model: nn.Module, device: torch.device) -> None:
    """Run a copy of `model`, that of `config`, on two samples, in eval and in train mode.

    Raises:
        InputError: it fails on samples of this shape, or gives something else than logits ``[2, classes]``.
    """
    x, trial = _two_samples(config, data, device), copy.deepcopy(model)
    for train in (False, True):
        mode = "training" if train else "evaluation"
        try:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.amp):
                logits = trial.train(train)(x)
        except _UNFIT as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            told = f"model {config.model!r} does not take samples of shape {data.input_shape} in {mode} ({reason})"
            raise InputError(f"{told}; choose another model or picture size") from error
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if got != (2, data.num_classes):
            told = f"model {config.model!r} must give logits of shape (2, {data.num_classes}) for two samples"
            raise InputError(f"{told}; got {got} in {mode}; choose another model")


def check_objective(config: TrainConfig, data: RunData, model: nn.Module, teacher: nn.Module, device: torch.device) -> None:
    """Compare the layers of copies of `model` and `teacher` on two samples, where the loss of `config` will do it.

    Raises:
        InputError: there are no such layers, or their outputs have other shapes.
    """
    objective = make_objective(config, copy.deepcopy(model).eval(), copy.deepcopy(teacher))
    if isinstance(objective, CorrectedObjective):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.amp):
            objective.correction(_two_samples(config, data, device))


def _two_samples(config: TrainConfig, data: RunData, device: torch.device) -> Tensor:
    x, _ = next(iter(batches_of(data.pool, 2, indices=torch.arange(2))))
    return laid_out(x.to(device), config.channels_last)
