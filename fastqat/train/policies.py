"""From ``--select`` to the policy that does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastqat.methods import ACS
from fastqat.selection.forwards import device_of
from fastqat.selection.policies import RS2, RandomSubset, SelectionPolicy, WholeSet
from fastqat.train.config import TrainConfig
from fastqat.train.engine import laid_out
from fastqat.train.pool import RunData
from fastqat.train.stage import forward_batch


def make_policy(config: TrainConfig, data: RunData, student: nn.Module, teacher: nn.Module) -> SelectionPolicy:
    """The selection policy of `config` over the pool of `data`.

    Raises:
        InputError: a fraction that leaves a class empty.
    """
    if config.select == "none" or config.epochs == 0:
        return WholeSet(data.pool, seed=config.seed)
    drawn: dict[str, Any] = {"fraction": config.fraction, "balanced": config.balanced, "seed": config.seed}
    if config.select == "random":
        return RandomSubset(data.pool, interval=config.interval, labels=data.labels, **drawn)
    if config.select == "rs2":
        return RS2(data.pool, labels=data.labels, **drawn)
    return ACS(
        data.augmented,
        student,
        teacher,
        score_view=data.pool,
        epochs=config.epochs,
        interval=config.interval,
        schedule=config.schedule,
        first_select=config.first_select,
        bn_reestimate=config.bn_reestimate,
        batch_size=forward_batch(device_of(student)),
        num_workers=config.workers,
        progress=config.progress,
        forward=scoring_forward(config),
        **drawn,
    )


def scoring_forward(config: TrainConfig) -> Any:
    """``forward(model, x)`` with the memory layout and the autocast of training."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.amp):
            return model(laid_out(x, config.channels_last)).float()

    return forward
