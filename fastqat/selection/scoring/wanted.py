"""`Wanted`: what one pass has to compute, and what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from torch import nn

from fastqat._errors import InputError
from fastqat.selection.scores.registry import Score, Stage, get_score
from fastqat.selection.scoring.content import describe
from fastqat.selection.scoring.features import FEATURES, Feature, feature_called

_OF_ALL = {"embeddings": "embedding", "probabilities": "probabilities"}  # what a score of stage "whole" needs → feature


class Column(NamedTuple):
    """A requested score under the name it was asked for, with the options it takes."""

    name: str
    score: Score
    options: dict[str, Any]


class Wanted:
    """The scores and features of a pass.

    Args:
        scores: names; None: ``evs``, and ``ds`` with a teacher.
        features: kind of features or name of a module; None: none.
        model: what is scored.
        has_teacher: whether there is one to compare with.
        options: of the scores.

    Raises:
        InputError: an unknown name or option, no teacher where one is needed, a score of recorded trainings.
    """

    def __init__(
        self, scores: str | Sequence[str] | None, features: str | None, model: nn.Module, has_teacher: bool, options: dict[str, Any]
    ):
        if scores is None:
            scores = ["evs", "ds"] if has_teacher else ["evs"]
        self.columns = _columns([scores] if isinstance(scores, str) else list(scores), has_teacher, options)
        self.feature = None if features is None else feature_called(features, model)
        needed = [need for column in self.columns for need in column.score.needs]
        self.kept: dict[str, Feature] = {} if self.feature is None else {self.feature.name: self.feature}
        self.kept.update({_OF_ALL[need]: FEATURES[_OF_ALL[need]] for need in needed if need in _OF_ALL})
        needed += [need for feature in self.kept.values() for need in feature.needs]
        self.needs = frozenset(needed)
        self._at = {stage: [c for c in self.columns if c.score.stage == stage] for stage in get_args(Stage)}

    def at(self, stage: Stage) -> list[Column]:
        """The columns that are computed at `stage`."""
        return self._at[stage]

    @property
    def backward(self) -> bool:
        """Whether the pass runs backward passes."""
        return not self.needs.isdisjoint(("gradients", "inputs"))

    def text(self) -> str:
        """All of it, for the key of a checkpoint."""
        options = [{key: describe(value) for key, value in column.options.items()} for column in self.columns]
        columns = [f"{column.name} {own or ''}".strip() for column, own in zip(self.columns, options, strict=True)]
        return ", ".join([*columns, *(f"features {name}" for name in self.kept)])


def _columns(names: list[str], has_teacher: bool, options: dict[str, Any]) -> list[Column]:
    if not names:
        raise InputError("scores is empty; name at least one, such as 'evs' (list_scores() shows all)")
    columns = []
    for name in dict.fromkeys(names):
        score = get_score(name)
        if score.stage == "dynamics":
            raise InputError(f"score {name!r} comes from a recorded training: feed a DynamicsRecorder while training and take its table()")
        if "teacher" in score.needs and not has_teacher:
            raise InputError(f"score {name!r} compares with a teacher; pass teacher= the full-precision model")
        columns.append(Column(name, score, {key: options[key] for key in score.options if key in options}))
    unknown = set(options) - {key for column in columns for key in column.options}
    if unknown:
        raise InputError(f"no requested score takes {', '.join(sorted(unknown))}; scores: {', '.join(names)}")
    return columns
