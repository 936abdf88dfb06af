"""The float models of a run, its own and that of a teacher: given, cached, or trained; runs that agree on data and settings share one."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from filelock import FileLock, Timeout
from torch import nn

from fastqat._distributed import on_first, world
from fastqat._errors import CheckpointError
from fastqat._files import naming_errors
from fastqat.nn.param_groups import param_groups
from fastqat.selection.table import ScoreTable
from fastqat.train.checkpoint import CheckpointStore, check_same_data, load_state, load_weights, save_state
from fastqat.train.config import FLOAT_FIELDS, TrainConfig
from fastqat.train.engine import Objective
from fastqat.train.folder import RunFolder
from fastqat.train.models import make_model
from fastqat.train.pool import RunData
from fastqat.train.recorded import RecordedSet
from fastqat.train.stage import Stage, StagePlan

_PATIENCE = 20.0  # seconds between two words of a process that waits for another
# Raise it when the float stage changes so that old cached weights would not be trained again.
_CACHE_FORMAT = 2


def float_key(config: TrainConfig, data: RunData) -> str:
    """Names the float model that `config` asks for: a hash of the settings and of the data that it is trained with."""
    settings = [f"{name}={getattr(config, name)}" for name in FLOAT_FIELDS] + ["sync_bn"] * config.sync_bn
    facts = [f"format={_CACHE_FORMAT}", *settings, f"seed={config.used_float_seed}", f"data={data.fingerprint}"]
    return _digest(facts)


def cache_key(key: str, device: torch.device) -> str:
    """`key` and what else decides the last bits: torch, device, threads and processes. Runs that agree on it share their float weights."""
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        place = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    facts = [key, torch.__version__, str(torch.get_num_threads()), device.type, place]
    return _digest(facts if world().size == 1 else [*facts, f"processes={world().size}"])


def _digest(facts: list[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def teacher_config(config: TrainConfig) -> TrainConfig | None:
    """The settings that the teacher of `config` is made with, as if it were the float model; None where the float model is the teacher.

    An oracle teacher is trained on the labels before label noise. Weights that are given stay what they are: without a teacher of its own a
    run with ``float_checkpoint`` has no other.
    """
    own = config.teacher_checkpoint is not None or config.teacher not in (None, config.model)
    if not own and not (config.oracle_teacher and config.float_checkpoint is None):
        return None
    changed: dict[str, Any] = {"model": config.teacher or config.model, "float_checkpoint": config.teacher_checkpoint}
    changed |= {"teacher": None, "teacher_checkpoint": None, "oracle_teacher": False}
    changed |= {"label_noise": 0.0, "label_noise_type": "symmetric"} if config.oracle_teacher else {}
    return replace(config, **changed)


def given_weights(path: Path) -> dict[str, Any]:
    """The state_dict in a file of weights, one that is under ``"model"`` too.

    Raises:
        CheckpointError: there is no such file, or it is damaged or something else.
    """
    state = load_state(path)
    return state["model"] if isinstance(state.get("model"), dict) else state


def new_model(config: TrainConfig, data: RunData, device: torch.device) -> nn.Module:
    """The untrained model of `config`, seeded."""
    torch.manual_seed(config.used_float_seed)
    model = make_model(config.model, data.num_classes, data.input_shape).to(device)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model  # type: ignore[call-overload]


def float_model(
    config: TrainConfig,
    data: RunData,
    plan: StagePlan,
    model: nn.Module,
    folder: RunFolder,
    resumed: bool,
    say: Callable[[str], None],
    *,
    name: str = "float",
    before: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Give `model` its float weights and return the metric rows of their training.

    They come from ``float_checkpoint``, else from the run's own ``checkpoints/NAME.pt``, else from ``float_cache``, else they
    are trained now; then they are cached. What the training of ``"float"`` says of the samples goes to ``dynamics.npz`` of the run.

    Args:
        config: with the model, and its checkpoint, as ``model`` and ``float_checkpoint``.
        data, plan, folder, resumed, say: of the run.
        model: of `config`.
        name: of the stage: ``"float"``, or ``"teacher"``.
        before: metric rows of earlier stages.

    Raises:
        CheckpointError: ``float_checkpoint`` is damaged or of another architecture; the run was started on other data.
    """
    if config.float_checkpoint is not None:
        load_weights(model, given_weights(config.float_checkpoint), config.float_checkpoint)
        say(f"{name} weights from {config.float_checkpoint}")
        return []
    key = float_key(config, data)
    own = folder.checkpoints / f"{name}.pt"
    cached = (config.float_cache or config.runs / ".float") / f"{cache_key(key, plan.device)}.pt"
    mine = on_first(lambda: _read(own, say))
    if mine is not None:
        check_same_data(mine, data.fingerprint, own)
    mine, place = (mine, own) if _is_of(mine, key) else (None, cached)
    found = mine or on_first(lambda: _read(cached, say))
    with contextlib.nullcontext() if _is_of(found, key) else _alone(cached, say):
        if not _is_of(found, key):
            found = on_first(lambda: _read(cached, say))  # trained by another process meanwhile
        if not _is_of(found, key):
            plan = replace(plan, name=name, epochs=config.float_epochs, batch_size=config.float_batch_size, seed=config.used_float_seed)
            rows, dynamics = _train(config, data, plan, model, folder, resumed, say, before)
            found = {"key": key, "data": data.fingerprint, "model": model.state_dict(), "rows": rows, "dynamics": dynamics}
            keep: tuple[Path, ...] = (cached, own)
        else:
            say(f"{name} weights of {'this run' if mine else 'an earlier run'} ({place})")
            load_weights(model, found["model"], place)
            keep = () if mine else (own,)
        if world().rank == 0:
            for path in keep:
                save_state(path, found)
    if world().rank == 0:
        CheckpointStore(folder.checkpoints, name, say).clear()
        if name == "float" and found.get("dynamics") is not None:
            ScoreTable.from_state_dict(found["dynamics"]).save(folder.dynamics)
    return [{**row, "stage": name} for row in found["rows"]]


@contextlib.contextmanager
def _alone(cached: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Of the processes that want to train the float model of the file `cached`, one at a time is in the block; the others wait, and say so.

    A run in several processes does not wait: while its first one did, the others would give it up.
    """
    if world().size > 1:
        yield
        return
    lock = FileLock(cached.with_suffix(".lock"))
    while not lock.is_locked:
        with naming_errors(cached), contextlib.suppress(Timeout):
            cached.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=_PATIENCE)
        if not lock.is_locked:
            say(f"waiting for another process, which trains the float weights {cached}")
    try:
        yield
    finally:
        lock.release()


def _read(path: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The float model at `path`; None when there is none, or it is damaged, which is said."""
    if not path.is_file():
        return None
    try:
        return load_state(path)
    except CheckpointError as error:
        say(f"{error} -- not used")
        path.unlink(missing_ok=True)
        return None


def _is_of(found: dict[str, Any] | None, key: str) -> TypeGuard[dict[str, Any]]:
    return found is not None and found.get("key") == key


def _train(
    config: TrainConfig,
    data: RunData,
    plan: StagePlan,
    model: nn.Module,
    folder: RunFolder,
    resumed: bool,
    say: Callable[[str], None],
    before: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The rows of the training's metrics, and its recorded dynamics as the state of a `ScoreTable`; None where there was no epoch."""
    optimizer = make_optimizer(config, param_groups(model, config.float_lr, weight_decay=config.weight_decay), config.float_lr)
    policy = RecordedSet(data.pool, seed=plan.seed)
    stage = Stage(
        plan,
        model,
        optimizer,
        policy,
        data.source,
        data.val,
        Objective(),
        CheckpointStore(folder.checkpoints, plan.name, say),
        data=data.fingerprint,
        on_epoch=lambda state: folder.write_metrics([*before, *state.rows]),
        say=say,
    )
    rows = stage.fit(resumed).rows
    return rows, policy.recorder.table().state_dict() if plan.epochs else None


def make_optimizer(config: TrainConfig, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Adam."""
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr)
    return torch.optim.SGD(groups, lr, momentum=config.momentum, nesterov=config.momentum > 0)
