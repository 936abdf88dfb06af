"""The registry of per-sample scores, each in a file of its own.

Most scores are a function ``compute(scores: LogitScores, *, options...) -> [N]``: it picks from, or combines, what `fastqat.logit_scores`
gives in one read of the logits. A score that needs "features" or "gradients" watches the model instead: it is a context manager
``watch(model, *, options...)`` around the forward of one batch that yields a `Watched`, which is filled in by the pass before the block
ends and by the score when it ends. Either way any number of scores costs one forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import Tensor, nn

from fastqat._errors import InputError

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores

Direction = Literal["largest", "smallest"]
_WATCHES = {"features", "gradients"}
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Watched:
    """One batch under watch: its logits ``[N, C]`` and its targets ``[N]`` if the score needs them, and then its scores ``[N]``."""

    logits: Tensor
    targets: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Score:
    """One row of `list_scores`.

    ``direction``: which end `select` keeps with ``topk``. ``needs``: any of "targets" (labels), "teacher", "features" (what the model
    computes on the way) and "gradients" (a backward pass). ``compute``: how, see the module.
    """

    name: str
    formula: str
    direction: Direction
    needs: tuple[str, ...]
    source: str
    compute: Callable[..., Any]

    @property
    def watches(self) -> bool:
        """Whether it needs more of the model than logits, so that `watch` computes it."""
        return not _WATCHES.isdisjoint(self.needs)

    def watch(self, model: nn.Module, **options: Any) -> AbstractContextManager[Watched]:
        """Watch the forward of one batch through `model`, for a score that `watches`."""
        return self.compute(model, **options)

    def __call__(self, scores: LogitScores, **options: Any) -> Tensor:
        """The score ``[N]``, fp32, from what `fastqat.logit_scores` gave.

        Raises:
            InputError: it was not given the targets or the teacher that this score needs, or needs the model itself.
        """
        if self.watches:
            raise InputError(f"score {self.name!r} needs {' and '.join(self.needs)} of a model; compute it with score_dataset")
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
) -> Callable[[_Function], _Function]:
    """Decorator: enter a ``compute(scores, *, options...)`` or ``watch(model, *, options...)``, see the module, as `name` and `aliases`."""

    def enter(compute: _Function) -> _Function:
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
