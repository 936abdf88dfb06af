"""The registry of per-sample scores.

A score is a function ``compute(scores: LogitScores, *, options...) -> [N]`` in a file of its own: it picks from, or combines, what
`fastqat.logit_scores` gives in one read of the logits, so that any number of scores costs one pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from fastqat._errors import InputError

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores

Direction = Literal["largest", "smallest"]


@dataclass(frozen=True)
class Score:
    """One row of `list_scores`.

    ``direction``: which end `select` keeps with ``topk``. ``needs``: any of "targets" (labels) and "teacher".
    """

    name: str
    formula: str
    direction: Direction
    needs: tuple[str, ...]
    source: str
    compute: Callable[..., Tensor | None]

    def __call__(self, scores: LogitScores, **options: Any) -> Tensor:
        """The score ``[N]``, fp32, from what `fastqat.logit_scores` gave.

        Raises:
            InputError: it was not given the targets or the teacher that this score needs.
        """
        values = self.compute(scores, **options)
        if values is None:
            raise InputError(f"score {self.name!r} needs {' and '.join(self.needs)}; give them to logit_scores")
        return values

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the keyword options that `score_dataset` passes on."""
        return tuple(inspect.signature(self.compute).parameters)[1:]


_scores: dict[str, Score] = {}


def register_score(
    name: str, *, formula: str, direction: Direction, source: str, needs: tuple[str, ...] = (), aliases: tuple[str, ...] = ()
) -> Callable[[Callable[..., Tensor | None]], Callable[..., Tensor | None]]:
    """Decorator: enter a ``compute(scores, *, options...)`` function under `name` and its `aliases`."""

    def enter(compute: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        for key in (name, *aliases):
            if key in _scores:
                raise ValueError(f"score {key!r} is already registered; choose another name")
            _scores[key] = Score(name, formula, direction, needs, source, compute)
        return compute

    return enter


def get_score(name: str) -> Score:
    """The score called `name`; InputError with the known names otherwise."""
    if name not in _scores:
        raise InputError(f"unknown score {name!r}; choose from {', '.join(sorted(_scores))}")
    return _scores[name]


def direction_of(name: str) -> Direction:
    """Which end of the score `name` is kept; "largest" for a column that no registered score made."""
    return _scores[name].direction if name in _scores else "largest"


def list_scores() -> dict[str, Score]:
    """Every score, aliases included: name → `Score` (formula, direction, needs, source, options).

    Example:
        >>> import fastqat.selection as selection
        >>> selection.list_scores()["margin"].direction
        'smallest'
    """
    return dict(sorted(_scores.items()))
