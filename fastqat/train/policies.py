"""From ``--select`` to the policy that does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.methods import ACS, QuaRCSubset
from fastqat.selection.forwards import device_of
from fastqat.selection.policies import RS2, RandomSubset, ScoredSubset, SelectionPolicy, WholeSet
from fastqat.selection.selectors import get_selector
from fastqat.train.config import TrainConfig
from fastqat.train.engine import laid_out
from fastqat.train.pool import RunData
from fastqat.train.stage import forward_batch


def make_policy(config: TrainConfig, data: RunData, student: nn.Module, teacher: nn.Module) -> SelectionPolicy:
    """The selection policy of `config` over the pool of `data`.

    Raises:
        InputError: a fraction that leaves a class empty, options that the selector does not take, or nothing that it could go by.
    """
    if config.select == "none" or config.epochs == 0:
        return WholeSet(data.pool, seed=config.seed)
    drawn: dict[str, Any] = {"fraction": config.fraction, "balanced": config.balanced, "seed": config.seed}
    if config.select in ("random", "rs2"):
        if config.selector_options or config.features is not None or config.score_source == "train":
            raise InputError(f"select {config.select} looks at no scores or features and has no options; leave those settings out")
        if config.select == "rs2":
            return RS2(data.pool, labels=data.labels, **drawn)
        return RandomSubset(data.pool, interval=config.interval, labels=data.labels, **drawn)
    scored = {**drawn, **_scoring(config, data, student)}
    if config.select == "acs":
        return ACS(data.augmented, student, teacher, schedule=config.schedule, **scored)
    if config.select == "quarc":
        return QuaRCSubset(data.augmented, student, teacher, schedule=config.schedule, normalize=config.score_normalize, **scored)
    matches = "val_features" in get_selector(config.select).needs
    if matches and data.val is None:
        raise InputError(f"select {config.select} matches the validation samples; set val_fraction above 0")
    val_view = data.val if matches else None
    return ScoredSubset(data.augmented, student, teacher, score=config.score, method=config.select, val_view=val_view, **scored)


def _scoring(config: TrainConfig, data: RunData, student: nn.Module) -> dict[str, Any]:
    """What all policies that score take."""
    return {
        "score_view": data.pool,
        "options": config.selector_options,
        "features": config.features,
        "epochs": config.epochs,
        "interval": config.interval,
        "warmup": config.select_warmup,
        "anneal": config.select_anneal,
        "first_select": config.first_select,
        "score_source": config.score_source,
        "max_age": config.score_max_age,
        "bn_reestimate": config.bn_reestimate,
        "batch_size": forward_batch(device_of(student)),
        "num_workers": config.workers,
        "progress": config.progress,
        "forward": scoring_forward(config),
    }


def scoring_forward(config: TrainConfig) -> Any:
    """``forward(model, x)`` with the memory layout and the autocast of training; the same to a fingerprint where these are."""
    amp, channels_last = config.amp, config.channels_last

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            return model(laid_out(x, channels_last)).float()

    return forward
