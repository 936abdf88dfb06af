"""The scoring passes of a policy: over the plain view of its data set, and what they cost."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._distributed import world
from fastqat._errors import InputError
from fastqat._tensor_data import subset
from fastqat.selection.batch_norm import reestimate_batch_norm
from fastqat.selection.budget import check_count
from fastqat.selection.datasets import batches_of, known_labels, sized
from fastqat.selection.determinism import check_deterministic
from fastqat.selection.forwards import device_of, evaluation_mode, logits_of, to_device, unwrapped
from fastqat.selection.scorer import score_dataset
from fastqat.selection.scores.registry import get_score
from fastqat.selection.scoring.features import feature_called
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache

_DEFAULTS: dict[str, Any] = {"batch_size": 256, "device": None, "num_workers": 0, "progress": True, "forward": None}
_OWN = frozenset({"model", "dataset", "scores", "teacher", "features"})


class Scorer(Protocol):
    """What a policy calls in place of `score_dataset` where a sample is more than one row of logits: a picture with its boxes, a sentence.

    Any function with these arguments will do, and it may name more, which the policy then takes as keyword arguments (``batch_size``,
    ``num_workers``, ``progress``, ...; with ``**options`` any); what the policy was not given keeps the scorer's own default. It leaves
    every module in the mode that it was in, and gives the same table in every process of several. The policy then needs
    ``score_source="pass"`` and no features, for ``balanced`` a view that carries labels (``targets``, ``labels`` or ``y``), and for
    ``bn_reestimate`` samples that a `DataLoader` can collate, or a view with ``.batches``, and a model that takes such a batch, of the
    scorer's ``batch_size`` (256 where it has none).

    Args:
        model: the model in training.
        dataset: the plain view.
        scores: names of the registry, which says which end of a score is best: ``["evs", "ds"]``.
        teacher: what the policy was given as such where one of `scores` compares with one, else None.

    Returns:
        A table with the columns `scores`, in data-set order.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fastqat.methods import ACS
        >>> from fastqat.selection import ScoreTable
        >>> def scorer(model, dataset, scores, *, teacher=None):
        ...     return ScoreTable({name: torch.arange(float(len(dataset))) for name in scores})
        >>> acs = ACS(torch.zeros(20, 3), nn.Linear(3, 2), nn.Linear(3, 2), epochs=2, scorer=scorer, balanced=False)
        >>> acs.begin_epoch(0), acs.selection.indices.tolist()
        (True, [19, 18])
    """

    def __call__(self, model: nn.Module, dataset: Dataset, scores: Sequence[str], *, teacher: Any = None) -> ScoreTable: ...


class ScoringPasses:
    """Passes of `student` over `view`, the teacher's logits kept from one to the next.

    Args:
        student: the model in training.
        view: the plain view of the data set.
        teacher: the full-precision model, its logits, a `TeacherCache`, or None.
        spend: told how many samples a pass sent through a model.
        names: every score that may be asked for.
        scoring: keyword arguments of `score_dataset`, options of these scores included; with ``scorer=``, a `Scorer`, those of that.

    Raises:
        InputError: a keyword argument that neither `score_dataset` (or the scorer) nor one of `names` takes, a scorer that is no function,
            or a batch size or number of workers out of range.
    """

    def __init__(
        self,
        student: nn.Module,
        view: Dataset,
        teacher: nn.Module | TeacherCache | Tensor | None,
        spend: Callable[[int], None],
        names: Sequence[str],
        scoring: dict[str, Any],
    ):
        self.student, self.view, self.spend, self.given = student, view, spend, teacher
        self.scorer: Callable[..., ScoreTable] | None = scoring.get("scorer")
        accepted, anything = _keywords(self.scorer or score_dataset)
        given = {key: value for key, value in scoring.items() if key != "scorer"}
        anything = anything and self.scorer is not None  # of score_dataset these are the scores' options
        self.passed = {key: value for key, value in given.items() if key in accepted or anything}
        self.options = {key: value for key, value in given.items() if key not in self.passed}
        own = {key: accepted[key] for key in _DEFAULTS if self.scorer is not None and accepted.get(key) is not None}
        self.scoring = {**_DEFAULTS, **own, **self.passed}
        unknown = set(self.options) - {key for name in names for key in get_score(name).options if self.scorer is None}
        if unknown:
            takes = ", ".join(sorted(accepted))
            raise InputError(f"neither a scoring pass nor the score takes {', '.join(sorted(unknown))}; a pass takes {takes}")
        check_count("batch_size", self.scoring["batch_size"])
        check_count("num_workers", self.scoring["num_workers"], least=0)
        self.teacher: TeacherCache | None = None
        if self.scorer is None and teacher is not None:
            self.teacher = teacher if isinstance(teacher, TeacherCache) else TeacherCache(teacher)
        self.taught = False  # the teacher's pass was counted: a resumed run repeats it without counting it again

    def score(self, names: Sequence[str], *, features: str | None = None, rest: Tensor | None = None) -> ScoreTable:
        """Scores, labels and `features` of all samples, or scores and labels of those at the indices `rest`, in that order.

        The first pass that needs a teacher goes over all samples in any case, so that later ones find its logits.
        """
        compares = any("teacher" in get_score(name).needs for name in names)
        if self.scorer is not None:
            return self._by_scorer(self.scorer, list(names), compares)
        teacher = self.teacher if compares else None
        known = teacher is None or teacher.complete or self.taught
        if rest is None or not known:
            table = self._whole(names, teacher, features)
            return table if rest is None else _rows(table, rest)
        table = self._run(subset(self.view, rest), names, None if teacher is None else self._teacher_of(rest, teacher, names))
        self.spend(len(rest))
        return table

    def _by_scorer(self, scorer: Callable[..., ScoreTable], names: list[str], compares: bool) -> ScoreTable:
        table = scorer(self.student, self.view, names, teacher=self.given if compares else None, **self.passed)
        size = sized(self.view)
        if not isinstance(table, ScoreTable) or table.num_samples != size or not set(names) <= set(table):
            raise InputError(f"the scorer must return a ScoreTable of {size} samples with the scores {', '.join(names)}; got {table!r}")
        self.spend(size * (2 if compares else 1))
        return table if table.labels is not None else ScoreTable(table, known_labels(self.view))

    @property
    def scorer_name(self) -> str | None:
        """Name of the scorer of the user's own, with what `functools.partial` binds; None without one."""
        return None if self.scorer is None else _name_of(self.scorer)

    def check(self, features: str | None, source: str, balanced: bool) -> None:
        """Refuse features that the model does not have, or what a scorer of the user's own does not give.

        Raises:
            InputError: it says which.
        """
        if self.scorer is not None and (features is not None or source == "train"):
            asked = f"features={features!r}" if features is not None else f"score_source={source!r}"
            raise InputError(f"{asked} cannot be had with a scorer of your own; leave it out: the scorer scores the whole view in a pass")
        if self.scorer is not None and balanced and known_labels(self.view) is None:
            raise InputError(
                "balanced=True keeps the classes' shares, and the samples to score carry no labels; pass balanced=False, or a score_view "
                "with labels (targets, labels or y)"
            )
        if features is not None:
            feature_called(features, self.student)

    def _whole(self, names: Sequence[str], teacher: TeacherCache | None, features: str | None) -> ScoreTable:
        before = 0 if teacher is None else teacher.forwards
        table = self._run(self.view, names, teacher, **({} if features is None else {"features": features}))
        ran = teacher is not None and teacher.forwards > before
        self.spend(sized(self.view) * (2 if ran and not self.taught else 1))
        self.taught |= ran
        return table

    def _teacher_of(self, rest: Tensor, teacher: TeacherCache, names: Sequence[str]) -> TeacherCache:
        """The teacher for the samples `rest`: its logits where all are in this process, else the model."""
        if not teacher.complete and world().size == 1:
            self._run(self.view, names, teacher)  # a resumed run gets the logits that it had
        if teacher.logits is not None:
            return TeacherCache(teacher.logits[rest.to(teacher.logits.device)])
        assert teacher.model is not None
        self.spend(len(rest))
        return TeacherCache(teacher.model)

    def _run(self, view: Dataset, names: Sequence[str], teacher: TeacherCache | None, **more: Any) -> ScoreTable:
        options = {key: value for key, value in self.options.items() if any(key in get_score(name).options for name in names)}
        return score_dataset(self.student, view, list(names), teacher=teacher, **self.scoring, **options, **more)

    def features_of(self, view: Dataset, features: str) -> Tensor | None:
        """The features of another data set, ``[M, D]``."""
        table = self._run(view, ["entropy"], None, features=features)
        self.spend(sized(view))
        return table.features

    def classes(self) -> int:
        """How many classes the model tells apart: that many logits it has for the first sample."""
        x, _ = next(iter(batches_of(self.view, 1, indices=torch.zeros(1, dtype=torch.int64))))
        device = device_of(self.student) if self.scoring["device"] is None else torch.device(self.scoring["device"])
        with evaluation_mode(self.student):
            return logits_of(unwrapped(self.student), to_device(x, device), self.scoring["forward"]).shape[1]

    def reestimate(self, batches: int, seed: int, epoch: int) -> None:
        """Batch-norm statistics from plain random samples, full batches only, the same ones for the same (seed, epoch)."""
        if batches == 0:
            return
        size, batch_size = sized(self.view), self.scoring["batch_size"]
        wanted = min(batches, max(1, size // batch_size)) * batch_size
        indices = torch.randperm(size, generator=generator_for(seed, Stream.BATCH_NORM, epoch))[:wanted]
        read = batches_of(self.view, batch_size, indices=indices, num_workers=self.scoring["num_workers"])
        # A list may be a batch of pictures or the inputs of a model that takes several: the number of samples is known without it.
        if reestimate_batch_norm(self.student, (x for x, _ in read), forward=self.scoring["forward"]):
            self.spend(len(indices))


def _keywords(scorer: Callable[..., ScoreTable]) -> tuple[dict[str, Any], bool]:
    """What `scorer` takes by name beside what a pass gives it, with its defaults (or None), and whether it takes any name."""
    if not callable(scorer):
        raise InputError(f"scorer must be a function of (model, dataset, scores, *, teacher=None); got {scorer!r}")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(scorer).parameters
    accepted = {name: one.default for name, one in parameters.items() if one.kind in named and name not in _OWN}
    accepted = {name: None if default is inspect.Parameter.empty else default for name, default in accepted.items()}
    return accepted, any(one.kind == inspect.Parameter.VAR_KEYWORD for one in parameters.values())


def _name_of(scorer: Any) -> str:
    """Its name; of a partial also what it binds, where that has a value to compare."""
    if not isinstance(scorer, functools.partial):
        return getattr(scorer, "__qualname__", type(scorer).__name__)
    bound = [*enumerate(scorer.args), *sorted(scorer.keywords.items())]
    told = [f"{name}={value!r}" if isinstance(value, (str, int, float, type(None))) else f"{name}" for name, value in bound]
    return f"{_name_of(scorer.func)}({', '.join(told)})"


def _rows(table: ScoreTable, rest: Tensor) -> ScoreTable:
    return ScoreTable({name: table[name][rest] for name in table}, None if table.labels is None else table.labels[rest])


def plain_view(dataset: Dataset, score_view: Dataset | None) -> Dataset:
    """The data set to score: `score_view`, or `dataset` when every read of it gives the same.

    Raises:
        InputError: `dataset` augments, or `score_view` shows other samples.
    """
    if score_view is None:
        check_deterministic(dataset)
        return dataset
    if sized(score_view) != sized(dataset):
        raise InputError(f"score_view must show the same samples: it has {sized(score_view)}, the data set {sized(dataset)}")
    labels, shown = known_labels(dataset), known_labels(score_view)
    if labels is not None and shown is not None and not torch.equal(labels, shown):
        first = int((labels != shown).nonzero()[0])
        raise InputError(f"score_view must show the same samples in the same order: its label at index {first} differs from the data set's")
    return score_view
