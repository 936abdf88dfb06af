"""`ScoredSubset`: any score, any selector, once or every few epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._errors import InputError
from fastqat.selection.budget import check_count, check_fraction, class_groups, whole_budget
from fastqat.selection.datasets import known_labels, labels_of, sized
from fastqat.selection.policies.base import SelectionPolicy
from fastqat.selection.policies.calendar import Calendar
from fastqat.selection.policies.observed import ObservedScores
from fastqat.selection.policies.passes import ScoringPasses, plain_view
from fastqat.selection.policies.trial import try_recording, try_selector
from fastqat.selection.recorder import DynamicsRecorder
from fastqat.selection.scores.registry import get_score
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.selecting import select
from fastqat.selection.selectors.registry import Selection, get_selector
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache

_SETTINGS = (
    "score", "method", "options", "features", "fraction", "balanced", "first_select", "score_source", "max_age", "bn_reestimate",
)  # fmt: skip


class ScoredSubset(SelectionPolicy):
    """Score all samples and train on those that a selector keeps: once, or anew every `interval` epochs.

    A sample that was dropped can return, because every selection looks at the whole set. Where the selector defines loss weights the
    loop multiplies each sample's loss by ``policy.sampler.loss_weights(index)`` before it takes the mean.

    `score_source` says where scores come from. ``"pass"``: from a pass over the plain view before each selection, in eval mode.
    ``"train"``: from the training forward, which the loop shows to `observe`; only samples that were not seen in the last `max_age` epochs
    are scored by a pass, over these alone. That saves the forward of all others, and changes what is scored: the augmented sample as it was
    drawn, batch norm and dropout as in training, and weights that are older than the selection, by up to `max_age` epochs. A score that
    compares with a teacher is then that of the teacher's logits for the same augmented sample (``observe(..., teacher_logits=)``), which
    training has where it distils; where it does not, the teacher must run on these samples, and only the student's forward is saved. With
    ``warmup=1``, where all samples are seen before the first selection, and ``max_age=None`` there is no pass at all: this is how InfoBatch
    works, as in the second example. Scores of a whole training (``forgetting``, ``aum``, ...) are always observed.

    Args:
        dataset: what training reads, augmented or not; ``policy.sampler`` yields its indices.
        student: the model in training; scored in eval mode and put back.
        teacher: the full-precision model, its logits ``[N, C]`` or a `TeacherCache`, for the scores that compare with one.
        score: a name from `list_scores`.
        method: a name from `list_selectors`, other than random and rs2.
        options: of the selector; ``classes`` of glister is taken from the model where it is not given.
        features: what selectors that compare samples go by, see `score_dataset`: "embedding", "gradient", ...
        val_view: held-out data without augmentation, for the selectors that match it.
        score_view: the same samples as in `dataset`, in the same order, without augmentation; None when `dataset` itself has none. What
            the type of `dataset` does not tell is checked: 16 samples, read twice under different random states, must not differ.
        fraction: share of the samples kept, in (0, 1].
        interval: epochs between selections; None: one selection that stays.
        epochs: length of the whole training; needed for `anneal`.
        warmup, anneal: so many epochs at the start and at the end train on all samples.
        balanced: keep the class proportions.
        first_select: "random" draws the first subset instead of trusting the scores of a model that was quantized a moment ago.
        score_source, max_age: see above; `max_age` None: any age.
        bn_reestimate: number of plain random batches from which batch-norm statistics are estimated before each scoring pass and in
            `finish`; 0 leaves them as training on the subset made them.
        seed: of the random draws and the sampler's order.
        num_replicas, rank: of the sampler.
        scoring: of the scoring pass, see `score_dataset`: batch_size, device, num_workers, progress, forward, ..., and the score's options;
            or ``scorer``, which scores in place of `score_dataset` what is no classification, see `Scorer`, and its options.

    Raises:
        InputError: an option outside its range or of another type, unknown names, an augmenting data set without `score_view`, a view of
            another length or with other labels, no teacher or no features where they are needed, a fraction that leaves a class empty.
        DataError: empty data set, labels out of range.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from fastqat.selection import IndexedDataset
        >>> data, model = TensorDataset(torch.randn(200, 8), torch.arange(200) % 4), torch.nn.Linear(8, 4)
        >>> ccs = ScoredSubset(data, model, score="evs", method="stratified", options={"beta": 0.1}, fraction=0.2, interval=None)
        >>> ccs.begin_epoch(0), ccs.begin_epoch(1), len(ccs.selection)
        (True, False, 40)
        >>> infobatch = ScoredSubset(data, model, score="loss", method="infobatch", fraction=0.8, interval=1, epochs=4,
        ...                          warmup=1, anneal=1, score_source="train", max_age=None)
        >>> for epoch in range(4):
        ...     changed = infobatch.begin_epoch(epoch)
        ...     for x, y, index in DataLoader(IndexedDataset(data), 50, sampler=infobatch.sampler):
        ...         logits = model(x)
        ...         losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        ...         (losses * infobatch.sampler.loss_weights(index)).mean().backward()
        ...         infobatch.observe(index, logits, y)
        >>> infobatch.scoring_forwards
        0
    """

    def __init__(
        self,
        dataset: Dataset,
        student: nn.Module,
        teacher: nn.Module | TeacherCache | Tensor | None = None,
        *,
        score: str = "evs",
        method: str = "topk",
        options: Mapping[str, Any] | None = None,
        features: str | None = None,
        val_view: Dataset | None = None,
        score_view: Dataset | None = None,
        fraction: float = 0.1,
        interval: int | None = 10,
        epochs: int | None = None,
        warmup: int = 0,
        anneal: int = 0,
        balanced: bool = True,
        first_select: Literal["scores", "random"] = "scores",
        score_source: Literal["pass", "train"] = "pass",
        max_age: int | None = 1,
        bn_reestimate: int = 0,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        **scoring: Any,
    ):
        super().__init__(sized(dataset), seed=seed, num_replicas=num_replicas, rank=rank)
        if not isinstance(student, nn.Module):
            raise InputError(f"student must be the quantized model, a torch.nn.Module; got {type(student).__name__}")
        self.score, self.method, self.options, self.features = score, method, dict(options or {}), features
        self.fraction, self.balanced, self.first_select = check_fraction(fraction), balanced, first_select
        self.score_source, self.max_age, self.bn_reestimate = score_source, max_age, bn_reestimate
        self.calendar, self.val_view = Calendar(interval, epochs, warmup, anneal), val_view
        self.passes = ScoringPasses(student, plain_view(dataset, score_view), teacher, self._spend, self._all_names(), scoring)
        self._check()
        recorded = get_score(score).stage == "dynamics"
        self._recorder = DynamicsRecorder(self.size) if recorded else None
        observed = score_source == "train" and not recorded
        self._observed = ObservedScores(self.size, self._all_names(), self.passes.options) if observed else None

    def _spend(self, forwards: int) -> None:
        self.scoring_forwards += forwards

    def _all_names(self) -> list[str]:
        """Every score that a selection may need."""
        return [self.score]

    def _names(self, epoch: int) -> list[str]:
        """The scores that the selection before `epoch` needs."""
        return [self.score]

    def _complete(self, table: ScoreTable, epoch: int) -> ScoreTable:
        """`table`, which has the scores `_names`, with the column `score`."""
        return table

    def _check(self) -> None:
        """Refuse now what would fail in the middle of training."""
        check_count("bn_reestimate", self.bn_reestimate, least=0)
        if self.max_age is not None:
            check_count("max_age", self.max_age)
        for name, accepted in (("first_select", ("scores", "random")), ("score_source", ("pass", "train"))):
            if getattr(self, name) not in accepted:
                raise InputError(f"{name} must be {' or '.join(map(repr, accepted))}; got {getattr(self, name)!r}")
        random = self.first_select == "random"
        if random and self.calendar.warmup:
            raise InputError("first_select='random' is for a training without warm-up; leave out one of them")
        self.passes.check(self.features, self.score_source, self.balanced)
        try_selector(self.method, self.options, self.fraction, self.score, self.features, self.val_view is not None)
        for name in dict.fromkeys(name for epoch in self.calendar.selections()[random:] for name in self._names(epoch)):
            self._check_score(name)
        labels = known_labels(self.passes.view) if self.balanced else None
        if labels is not None:
            class_groups(labels, self.fraction)
        elif not self.balanced:
            whole_budget(self.size, self.fraction)

    def _check_score(self, name: str) -> None:
        score = get_score(name)
        if "teacher" in score.needs and self.passes.given is None:
            raise InputError(f"score {name!r} compares with a teacher; pass teacher= the full-precision model")
        if score.stage == "dynamics":
            if self.score_source != "train" or not self.calendar.warmup:
                raise InputError(
                    f"score {name!r} is of a whole training; use score_source='train' and warmup=2 or more, epochs on all samples"
                )
            try_recording(name)
        elif self.score_source == "train" and (score.stage != "logits" or self.features is not None):
            asked = f"score {name!r}" if score.stage != "logits" else f"features={self.features!r}"
            raise InputError(f"{asked} cannot be taken from the training forward; use score_source='pass'")

    def _due(self, epoch: int) -> bool:
        return self.calendar.due(epoch)

    def _select(self, epoch: int) -> Selection:
        if self.calendar.whole(epoch):
            self.table = None  # what is kept of the last scores says nothing of this choice
            return Selection(torch.arange(self.size))
        if self.selection is None and self.first_select == "random":
            labels = labels_of(self.passes.view) if self.balanced else None
            generator = generator_for(self.seed, Stream.SUBSET, epoch)
            return select(self.size, self.fraction, method="random", labels=labels, balanced=self.balanced, generator=generator)
        table = self._complete(self._scores(epoch), epoch)
        chosen = select(
            table,
            self.fraction,
            by=self.score,
            method=self.method,
            balanced=self.balanced,
            val_features=None if self.val_view is None else self.passes.features_of(self.val_view, str(self.features)),
            generator=generator_for(self.seed, Stream.SELECT, epoch),
            **self._selector_options(),
        )
        self.table = ScoreTable(table, table.labels)
        return chosen

    def _selector_options(self) -> dict[str, Any]:
        """`options`, with the number of classes where the selector needs it to read the gradients."""
        if "classes" in get_selector(self.method).options and self.features == "gradient" and self.options.get("classes") is None:
            return {**self.options, "classes": self.passes.classes()}
        return self.options

    def _scores(self, epoch: int) -> ScoreTable:
        """The scores `_names` of all samples, from training as far as it has shown them."""
        names = self._names(epoch)
        if self._recorder is not None:
            self._recorder.synchronise()
            recorded = self._recorder.table(names)
            return recorded if self.features is None else self._passed(epoch, ["entropy"]).with_score(self.score, recorded[self.score])
        if self._observed is None:
            return self._passed(epoch, names)
        self._observed.share()
        rest = (~self._observed.fresh(names, 0 if self.max_age is None else epoch - self.max_age)).nonzero().flatten()
        passed = self._passed(epoch, names, rest) if len(rest) else None
        table = self._observed.table(names, rest, passed)
        return table if table.labels is not None else ScoreTable(table, known_labels(self.passes.view))

    def _passed(self, epoch: int, names: list[str], rest: Tensor | None = None) -> ScoreTable:
        """Scores from a pass, over all samples or over those at the indices `rest`."""
        self.passes.reestimate(self.bn_reestimate, self.seed, epoch)
        return self.passes.score(names, features=self.features, rest=None if rest is not None and len(rest) == self.size else rest)

    @property
    def observing(self) -> bool:
        """Whether the next selection looks at what `observe` is shown in this epoch."""
        epoch = self.sampler.epoch
        following = self.calendar.next_selection(epoch)
        if following is None or self.score_source == "pass":
            return False
        return self._recorder is not None or self.max_age is None or following - epoch <= self.max_age

    @property
    def observes_teacher(self) -> bool:
        """Whether `observe` needs the teacher's logits in this epoch."""
        following = self.calendar.next_selection(self.sampler.epoch)
        return self.observing and any("teacher" in get_score(name).needs for name in self._names(following or 0))

    def observe(self, indices: Tensor, logits: Tensor, targets: Tensor | None = None, teacher_logits: Tensor | None = None) -> None:
        """Take the scores of a batch from its training forward, see the class; nothing where they will not be needed.

        Raises:
            InputError: lengths that differ, indices outside the data set, or no targets or teacher logits where a score needs them.
        """
        if not self.observing:
            return
        if self._recorder is not None:
            if targets is None:
                raise InputError(f"observe needs targets= for {self.score}; pass those of the same batch")
            self._recorder.update(indices, logits, targets)
        elif self._observed is not None:
            epoch = self.sampler.epoch
            self._observed.add(epoch, self._names(self.calendar.next_selection(epoch) or 0), indices, logits, targets, teacher_logits)

    def end_epoch(self) -> None:
        """As `SelectionPolicy.end_epoch`."""
        if self._recorder is not None:
            self._recorder.synchronise()
        if self._observed is not None:
            self._observed.share()

    def finish(self) -> None:
        """After the last epoch: estimate the batch-norm statistics once more, when `bn_reestimate` asks for it."""
        with self.timed():
            self.passes.reestimate(self.bn_reestimate, self.seed, self.calendar.epochs or self.sampler.epoch + 1)

    def _settings(self) -> dict[str, Any]:
        scorer = {} if self.passes.scorer is None else {"scorer": self.passes.scorer_name}
        return {**super()._settings(), **vars(self.calendar), **{name: getattr(self, name) for name in _SETTINGS}, **scorer}

    def state_dict(self) -> dict[str, Any]:
        """As `SelectionPolicy.state_dict`; the teacher's logits are not in it: the next pass computes the same ones again."""
        seen = self._recorder or self._observed
        return {**super().state_dict(), "taught": self.passes.taught, "seen": None if seen is None else seen.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; CheckpointError when it belongs to other settings."""
        super().load_state_dict(state)
        self.passes.taught = state["taught"]
        seen = self._recorder or self._observed
        if seen is not None:
            seen.load_state_dict(state["seen"])
