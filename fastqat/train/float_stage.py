"""The float model of a run: given, cached, or trained; runs that agree on data, model and settings share one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastqat._errors import CheckpointError
from fastqat.selection.policies import WholeSet
from fastqat.train.checkpoint import CheckpointStore, load_state, load_weights, save_state
from fastqat.train.config import FLOAT_FIELDS, TrainConfig
from fastqat.train.engine import cross_entropy
from fastqat.train.folder import RunFolder
from fastqat.train.models import make_model
from fastqat.train.pool import RunData
from fastqat.train.stage import Stage, StagePlan, StageState

# Raise it when the float stage changes so that old cached weights would not be trained again.
_CACHE_FORMAT = 1


def float_seed(config: TrainConfig) -> int:
    """Seed of the float stage: its own, else the run's."""
    return config.seed if config.float_seed is None else config.float_seed


def float_key(config: TrainConfig, data: RunData) -> str:
    """Names the float model that `config` asks for: a hash of everything that its weights depend on, thread count apart."""
    settings = [f"{name}={getattr(config, name)}" for name in FLOAT_FIELDS]
    facts = [f"format={_CACHE_FORMAT}", *settings, f"seed={float_seed(config)}", f"data={data.fingerprint}"]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def new_model(config: TrainConfig, data: RunData, device: torch.device) -> nn.Module:
    """The untrained model of `config`, seeded."""
    torch.manual_seed(float_seed(config))
    model = make_model(config.model, data.num_classes, data.input_shape).to(device)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model  # type: ignore[call-overload]


def float_model(
    config: TrainConfig, data: RunData, plan: StagePlan, model: nn.Module, folder: RunFolder, resumed: bool, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Give `model` its float weights and return the metric rows of their training.

    They come from ``float_checkpoint``, else from the run's own ``checkpoints/float.pt``, else from the cache ``RUNS/.float``, else they
    are trained now; then they are cached.

    Raises:
        CheckpointError: ``float_checkpoint`` is damaged or of another architecture.
    """
    if config.float_checkpoint is not None:
        state = load_state(config.float_checkpoint)
        load_weights(model, state.get("model", state), config.float_checkpoint)
        say(f"float weights from {config.float_checkpoint}")
        return []
    key = float_key(config, data)
    own, cached = folder.checkpoints / "float.pt", config.runs / ".float" / f"{key}.pt"
    found = _find(key, own, say) or _find(key, cached, say)
    if found is None:
        found = {"key": key, "model": None, "rows": _train(config, data, plan, model, folder, resumed, say).rows}
        found["model"] = model.state_dict()
        save_state(cached, found)
    else:
        say(f"float weights of an earlier run ({cached})" if not own.is_file() else "float weights of this run")
        load_weights(model, found["model"], cached)
    if not own.is_file():
        save_state(own, found)
    CheckpointStore(folder.checkpoints, "float", say).clear()
    return found["rows"]


def _find(key: str, path: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The cached float model at `path`; None when there is none, it is damaged (said), or of other settings."""
    if not path.is_file():
        return None
    try:
        found = load_state(path)
    except CheckpointError as error:
        say(f"{error} -- not used")
        path.unlink(missing_ok=True)
        return None
    return found if found.get("key") == key else None


def _train(
    config: TrainConfig, data: RunData, plan: StagePlan, model: nn.Module, folder: RunFolder, resumed: bool, say: Callable[[str], None]
) -> StageState:
    plan = replace(plan, name="float", epochs=config.float_epochs, batch_size=config.float_batch_size, seed=float_seed(config))
    optimizer = make_optimizer(config, decay_groups(model, config.float_lr, config.weight_decay), config.float_lr)
    stage = Stage(
        plan,
        model,
        optimizer,
        WholeSet(data.pool, seed=plan.seed),
        data.source,
        data.val,
        cross_entropy,
        CheckpointStore(folder.checkpoints, "float", say),
        on_epoch=lambda state: folder.write_metrics(state.rows),
        say=say,
    )
    return stage.fit(resumed)


def decay_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of a float model: weights decay, norms and biases do not."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": weights, "lr": lr, "weight_decay": weight_decay}, {"params": rest, "lr": lr, "weight_decay": 0.0}]


def make_optimizer(config: TrainConfig, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Adam."""
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr)
    return torch.optim.SGD(groups, lr, momentum=config.momentum, nesterov=config.momentum > 0)
