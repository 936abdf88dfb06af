"""The registry of per-sample scores, each in a file of its own.

What a score needs says when it is computed (`Score.stage`), and with that what its function looks like:

"logits"    ``compute(scores: LogitScores, *, options...) -> [N]``: picks from, or combines, what `fastqat.logit_scores` gives in one
            read of the logits. Most scores.
"watch"     needs "features" or "gradients": a context manager ``watch(model, *, options...)`` around the forward of one batch that
            yields a `Watched`, which is filled in by the pass before the block ends and by the score when it ends.
"inputs"    needs "inputs": ``compute(probe: Probe, *, options...) -> [N]``, called after the forward of a batch with gradients enabled,
            runs the model itself.
"whole"     needs "embeddings" or "probabilities" of all samples: ``compute(whole: WholePass, *, options...) -> [N]``, called once, at
            the end of the pass.
"dynamics"  needs "dynamics": ``compute(dynamics: Dynamics, *, options...) -> [N]``, from what a `DynamicsRecorder` saw of a training.

Any number of scores of the first two kinds costs one forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.selection.forwards import logits_of

if TYPE_CHECKING:
    from fastqat.ops.logit_scores.api import LogitScores
    from fastqat.selection.forwards import Forward

Direction = Literal["largest", "smallest"]
Stage = Literal["logits", "watch", "inputs", "whole", "dynamics"]
_STAGES: dict[str, Stage] = {
    "features": "watch",
    "gradients": "watch",
    "inputs": "inputs",
    "embeddings": "whole",
    "probabilities": "whole",
    "dynamics": "dynamics",
}
_SOURCES = {
    "watch": "compute it with score_dataset",
    "inputs": "compute it with score_dataset",
    "whole": "compute it with score_dataset",
    "dynamics": "feed a DynamicsRecorder while training and take it from its table()",
}
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Watched:
    """One batch under watch: its logits ``[N, C]`` and its targets ``[N]`` if the score needs them, and then its scores ``[N]``."""

    logits: Tensor
    targets: Tensor
    scores: Tensor


class Probe(NamedTuple):
    """One batch for a score that runs the model itself: `x` as the model takes it, its `logits` ``[B, C]``, `targets` ``[B]`` or None."""

    model: nn.Module
    x: Any
    logits: Tensor
    targets: Tensor | None
    forward: Forward | None

    def run(self, x: Any) -> Tensor:
        """Logits of `x` from the model, by the pass's own forward."""
        return logits_of(self.model, x, self.forward)


class WholePass(NamedTuple):
    """All samples after a pass, for a score that compares them: `embeddings` ``[N, D]``, `probabilities` ``[N, C]``, both fp32, and
    `labels` int64 ``[N]``; None what the score did not ask for or the data set does not give.
    """

    embeddings: Tensor | None
    probabilities: Tensor | None
    labels: Tensor | None


@dataclass(frozen=True)
class Score:
    """One row of `list_scores`.

    ``direction``: which end `select` keeps with ``topk``. ``needs``: any of "targets" (labels), "teacher", "features" (what the model
    computes on the way), "gradients" (a backward pass), "inputs" (more forwards and backwards), "embeddings" or "probabilities" (of all
    samples at once) and "dynamics" (a recorded training). ``compute``: how, see the module.
    """

    name: str
    formula: str
    direction: Direction
    needs: tuple[str, ...]
    source: str
    compute: Callable[..., Any]

    @property
    def stage(self) -> Stage:
        """When it is computed, see the module."""
        return next((_STAGES[need] for need in self.needs if need in _STAGES), "logits")

    def watch(self, model: nn.Module, **options: Any) -> AbstractContextManager[Watched]:
        """Watch the forward of one batch through `model`, for a score of stage "watch"."""
        return self.compute(model, **options)

    def __call__(self, scores: LogitScores, **options: Any) -> Tensor:
        """The score ``[N]``, fp32, from what `fastqat.logit_scores` gave.

        Raises:
            InputError: it was not given the targets or the teacher that this score needs, or needs the model itself.
        """
        if self.stage != "logits":
            raise InputError(f"score {self.name!r} needs {' and '.join(self.needs)}; {_SOURCES[self.stage]}")
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
    """Decorator: enter a function, whose form depends on `needs` (see the module), as `name` and `aliases`."""

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
