"""From ``--select`` to the policy that does it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._errors import InputError
from fastqat.methods import ACS, QuaRCSubset
from fastqat.selection.forwards import device_of
from fastqat.selection.policies import RS2, RandomSubset, ScoredSubset, SelectionPolicy, WholeSet
from fastqat.selection.policies.passes import ScoringPasses
from fastqat.selection.selectors import get_selector
from fastqat.train.config import TrainConfig
from fastqat.train.engine import laid_out
from fastqat.train.pool import RunData
from fastqat.train.stage import forward_batch

_OF_SCORES = ("features", "select_options", "score_source", "first_select", "select_warmup", "select_anneal")


def make_policy(config: TrainConfig, data: RunData, student: nn.Module, teacher: nn.Module) -> SelectionPolicy:
    """The selection policy of `config` over the pool of `data`.

    Raises:
        InputError: a fraction that leaves a class empty, options that the selector does not take, or nothing that it could go by.
    """
    if config.epochs == 0:
        return WholeSet(data.pool, seed=config.seed)
    if config.select in ("none", "random", "rs2"):
        _check_no_effect(config)
    if config.select == "none":
        return WholeSet(data.pool, seed=config.seed)
    drawn: dict[str, Any] = {"fraction": config.fraction, "balanced": config.balanced, "seed": config.seed}
    if config.select == "rs2":
        return RS2(data.pool, labels=data.labels, **drawn)
    if config.select == "random":
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


def _check_no_effect(config: TrainConfig) -> None:
    """Refuse what only selections by scores or features look at; the score itself may stand in the base of a study."""
    usual = {field.name: field.default for field in fields(config)}
    if wrong := [name for name in _OF_SCORES if getattr(config, name) != usual[name]]:
        raise InputError(f"select {config.select} looks at no scores or features; leave out {', '.join(wrong)}, which have no effect on it")


def finish_policy(config: TrainConfig, data: RunData, student: nn.Module, policy: SelectionPolicy) -> None:
    """After the last epoch: batch-norm statistics as ``bn_reestimate`` says, for policies that draw as for those that score."""
    finish_over(data.pool, student, policy, (config.bn_reestimate, config.seed, config.epochs), _reading(config, student))


def finish_over(view: Dataset, student: nn.Module, policy: SelectionPolicy, batches: tuple[int, int, int], reading: dict[str, Any]) -> None:
    """`finish_policy` for the plain `view` of any data set: `batches` is (number, seed, epochs), `reading` are options of a scoring pass.

    What it takes counts as the policy's, in forwards and in seconds.
    """
    if isinstance(policy, ScoredSubset):
        policy.finish()
        return

    def spend(forwards: int) -> None:
        policy.scoring_forwards += forwards

    with policy.timed():
        ScoringPasses(student, view, None, spend, [], reading).reestimate(*batches)


def _reading(config: TrainConfig, student: nn.Module) -> dict[str, Any]:
    """How passes read the data and run a model."""
    return {
        "batch_size": forward_batch(device_of(student)),
        "num_workers": config.workers,
        "progress": config.progress,
        "forward": scoring_forward(config),
    }


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
        **_reading(config, student),
    }


def scoring_forward(config: TrainConfig) -> Any:
    """``forward(model, x)`` with the memory layout and the autocast of training; the same to a fingerprint where these are."""
    amp, channels_last = config.amp, config.channels_last

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            return model(laid_out(x, channels_last)).float()

    return forward
