"""The scoring passes of a policy: over the plain view of its data set, and what they cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

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
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache

_DEFAULTS: dict[str, Any] = {"batch_size": 256, "device": None, "num_workers": 0, "progress": True, "forward": None}
_OWN = frozenset({"model", "dataset", "scores", "teacher", "features", "options"})


class ScoringPasses:
    """Passes of `student` over `view`, the teacher's logits kept from one to the next.

    Args:
        student: the model in training.
        view: the plain view of the data set.
        teacher: the full-precision model, its logits, a `TeacherCache`, or None.
        spend: told how many samples a pass sent through a model.
        names: every score that may be asked for.
        scoring: keyword arguments of `score_dataset`, options of these scores included.

    Raises:
        InputError: a keyword argument that neither `score_dataset` nor one of `names` takes, or a batch size or number of workers out of
            range.
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
        self.student, self.view, self.spend = student, view, spend
        accepted = set(inspect.signature(score_dataset).parameters) - _OWN
        self.scoring = {**_DEFAULTS, **{key: value for key, value in scoring.items() if key in accepted}}
        self.options = {key: value for key, value in scoring.items() if key not in accepted}
        unknown = set(self.options) - {key for name in names for key in get_score(name).options}
        if unknown:
            takes = ", ".join(sorted(accepted))
            raise InputError(f"neither a scoring pass nor the score takes {', '.join(sorted(unknown))}; a pass takes {takes}")
        check_count("batch_size", self.scoring["batch_size"])
        check_count("num_workers", self.scoring["num_workers"], least=0)
        self.teacher = teacher if isinstance(teacher, TeacherCache) or teacher is None else TeacherCache(teacher)
        self.taught = False  # the teacher's pass was counted: a resumed run repeats it without counting it again

    def score(self, names: Sequence[str], *, features: str | None = None, rest: Tensor | None = None) -> ScoreTable:
        """Scores, labels and `features` of all samples, or scores and labels of those at the indices `rest`, in that order.

        The first pass that needs a teacher goes over all samples in any case, so that later ones find its logits.
        """
        teacher = self.teacher if any("teacher" in get_score(name).needs for name in names) else None
        known = teacher is None or teacher.complete or self.taught
        if rest is None or not known:
            table = self._whole(names, teacher, features)
            return table if rest is None else _rows(table, rest)
        table = self._run(subset(self.view, rest), names, None if teacher is None else self._teacher_of(rest, teacher, names))
        self.spend(len(rest))
        return table

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
        self.spend(reestimate_batch_norm(self.student, (x for x, _ in read), forward=self.scoring["forward"]))


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
