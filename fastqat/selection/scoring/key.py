"""What must agree for a pass that is continued, and among the processes that share one."""

from __future__ import annotations

from typing import Any

from fastqat._errors import InputError
from fastqat.selection.scoring.fingerprint import content_hash, data_fingerprint, describe, model_fingerprint
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
        "request": scoring.wanted.text(),
        "batch size": f"{view.batch_size} of {view.size} {tuple(view.team.deal)}",
    }


def _teacher_key(cache: TeacherCache | None) -> str:
    if cache is None:
        return ""
    return f"{model_fingerprint(cache.model) if cache.model is not None else content_hash(cache.logits)} {cache.dtype}"


def check_same(team: Team, asked: tuple[Any, ...]) -> None:
    """Refuse processes that were asked for different things, whose results would not fit together."""
    given = team.gather(asked)
    for rank, other in enumerate(given):
        if other != given[0]:
            raise InputError(
                f"score_dataset must be called with the same arguments in all processes; process 0 has {given[0]}, process {rank} {other}; "
                "use processes='alone' where they score different things"
            )
