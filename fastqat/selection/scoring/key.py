"""What must agree for a pass that is continued, and among the processes that share one."""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import IterableDataset

from fastqat._errors import InputError
from fastqat.selection.scoring.arithmetic import arithmetic
from fastqat.selection.scoring.content import content_hash, describe
from fastqat.selection.scoring.fingerprint import data_fingerprint, model_fingerprint
from fastqat.selection.scoring.scoring_pass import ScoringPass
from fastqat.selection.scoring.sharing import Team
from fastqat.selection.teacher import TeacherCache
from fastqat.selection.teachers.stores import View


def pass_key(scoring: ScoringPass, view: View) -> dict[str, str]:
    """Name → fingerprint of all that the numbers of a pass depend on."""
    return {
        "model": model_fingerprint(scoring.model),
        "data set": view.data_key or data_fingerprint(view.dataset),
        "teacher": _teacher_key(scoring.cache),
        "forward": "" if view.forward is None else describe(view.forward),
        "arithmetic": arithmetic(view.device),
        "request": scoring.wanted.text(),
        "batch size": f"{view.batch_size} of {view.size} {tuple(view.team.deal)}",
    }


def _teacher_key(cache: TeacherCache | None) -> str:
    if cache is None:
        return ""
    return f"{model_fingerprint(cache.model) if cache.model is not None else content_hash(cache.logits)} {cache.dtype}"


def check_same_content(scoring: ScoringPass, view: View) -> None:
    """Refuse processes that have different models or data, whose rows would be mixed; warn where only the models' buffers differ.

    Batch-norm statistics do in a plain `DistributedDataParallel` training, where each process follows its own batches.
    """
    team = view.team
    if team.size == 1:
        return
    with team.step():
        own = _contents(scoring, view)
    found = team.gather(own)
    for name, remedy in (("data", "the same data"), ("teachers", "the same teacher"), ("models", "the same weights")):
        if any(each[name] != own[name] for each in found):
            raise InputError(f"the processes have different {name}; load {remedy} in all of them, or use processes='alone'")
    if any(each["buffers"] != own["buffers"] for each in found) and team.rank == 0:
        warnings.warn(
            "the buffers of the model, such as batch-norm statistics, differ among the processes, which score with their own; broadcast "
            "those of process 0 first, or average them",
            stacklevel=3,
        )


def _contents(scoring: ScoringPass, view: View) -> dict[str, str]:
    streams = isinstance(view.dataset, IterableDataset) or not hasattr(view.dataset, "__getitem__")
    return {
        "data": view.data_key or ("" if streams else data_fingerprint(view.dataset)),
        "teachers": _teacher_key(scoring.cache),
        "models": content_hash(dict(scoring.model.named_parameters())),
        "buffers": content_hash(dict(scoring.model.named_buffers())),
    }


def check_same(team: Team, asked: tuple[Any, ...]) -> None:
    """Refuse processes that were asked for different things, whose results would not fit together."""
    given = team.gather(asked)
    for rank, other in enumerate(given):
        if other != given[0]:
            raise InputError(
                f"score_dataset must be called with the same arguments in all processes; process 0 has {given[0]}, process {rank} {other}; "
                "use processes='alone' where they score different things"
            )
