"""ACS: adaptive coreset selection for quantization-aware training (Huang, Liu, Liu, Cheng; TMLR 2024; arXiv 2306.07215)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._errors import InputError
from fastqat.selection.batch_norm import reestimate_batch_norm
from fastqat.selection.budget import check_count, check_fraction, class_groups, whole_budget
from fastqat.selection.datasets import batches_of, known_labels, labels_of, sized
from fastqat.selection.determinism import check_deterministic
from fastqat.selection.forwards import Forward
from fastqat.selection.policies import SelectionPolicy
from fastqat.selection.schedules import Schedule, beta_at
from fastqat.selection.scorer import score_dataset
from fastqat.selection.scores.acs import blend
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.selecting import select
from fastqat.selection.selectors import Selection
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache


class ACS(SelectionPolicy):
    """Train on the samples that matter now: every `interval` epochs all samples are scored anew and the best `fraction` is kept.

    d_ACS(x, t) = β(t) · ‖p_Q − y‖₂ + (1 − β(t)) · ‖p_Q − p_T‖₂, largest kept, round(fraction · n_c) of each class c when balanced. A
    sample that was dropped can return, because every pass scores the whole set. A score whose weight is 0 is not computed: with
    ``cosine`` the teacher first runs at the second selection. The teacher's logits are kept (4·N·C bytes on the student's device, see
    `TeacherCache`), so that later passes run the student only.

    Args:
        dataset: what training reads, augmented or not; ``acs.sampler`` yields its indices.
        student: the quantized model, calibrated; scored in eval mode and put back.
        teacher: the full-precision model, its logits ``[N, C]`` or a `TeacherCache`; may be None when β stays 1.
        score_view: the same samples in the same order without augmentation; None when `dataset` itself has none. What the type of
            `dataset` does not tell is checked: 16 samples, read twice under different random states, must not differ.
        fraction: share of the samples kept, in (0, 1].
        epochs: length E of the whole training, which the schedule needs.
        interval: epochs between selections.
        schedule: name or callable, see `fastqat.selection.beta_at`.
        balanced: keep the class proportions.
        first_select: "random" draws the first subset instead of trusting the scores of a model that was quantized a moment ago.
        bn_reestimate: number of plain random batches from which batch-norm statistics are estimated before each scoring pass and in
            `finish`; 0 leaves them as training on the subset made them.
        batch_size, device, num_workers, progress, forward: of the scoring pass, see `score_dataset`.
        seed: of the random draws and the sampler's order.
        num_replicas, rank: of the sampler.

    Raises:
        InputError: an option outside its range or of another type, an augmenting data set without `score_view`, a view of another
            length or with other labels, no teacher although β falls below 1, a fraction that leaves a class empty.
        DataError: empty data set, labels out of range.

    Source: Huang et al., TMLR 2024 (arXiv 2306.07215); class balance as in the released code.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(200, 8), torch.arange(200) % 4)
        >>> acs = ACS(data, torch.nn.Linear(8, 4), torch.nn.Linear(8, 4), fraction=0.1, epochs=4, interval=2)
        >>> for epoch in range(4):
        ...     changed = acs.begin_epoch(epoch)
        ...     for x, y in DataLoader(data, 10, sampler=acs.sampler):
        ...         pass
        >>> len(acs.selection), acs.scoring_forwards
        (20, 600)
    """

    def __init__(
        self,
        dataset: Dataset,
        student: nn.Module,
        teacher: nn.Module | TeacherCache | Tensor | None = None,
        *,
        epochs: int,
        score_view: Dataset | None = None,
        fraction: float = 0.1,
        interval: int = 10,
        schedule: str | Schedule = "cosine",
        balanced: bool = True,
        first_select: Literal["scores", "random"] = "scores",
        bn_reestimate: int = 0,
        batch_size: int = 256,
        device: torch.device | str | None = None,
        num_workers: int = 0,
        progress: bool = True,
        forward: Forward | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ):
        super().__init__(sized(dataset), seed=seed, num_replicas=num_replicas, rank=rank)
        self.student, self.view = student, _plain_view(dataset, score_view)
        self.teacher = teacher if isinstance(teacher, TeacherCache) or teacher is None else TeacherCache(teacher)
        self.fraction, self.epochs, self.interval = check_fraction(fraction), epochs, interval
        self.schedule, self.balanced, self.first_select = schedule, balanced, first_select
        self.bn_reestimate, self.batch_size, self.num_workers = bn_reestimate, batch_size, num_workers
        self.device, self.progress, self.forward = device, progress, forward
        self._taught = False  # the teacher's pass was counted: a resumed run repeats it without counting it again
        self._check()

    def _check(self) -> None:
        """Refuse now what would fail in the middle of training."""
        if not isinstance(self.student, nn.Module):
            raise InputError(f"student must be the quantized model, a torch.nn.Module; got {type(self.student).__name__}")
        for name, least in (("epochs", 1), ("interval", 1), ("batch_size", 1), ("bn_reestimate", 0), ("num_workers", 0)):
            check_count(name, getattr(self, name), least=least)
        if self.first_select not in ("scores", "random"):
            raise InputError(f"first_select must be 'scores' or 'random'; got {self.first_select!r}")
        betas = [self.beta(epoch) for epoch in range(0, self.epochs, self.interval)]
        if self.teacher is None and min(betas[1:] if self.first_select == "random" else betas, default=1) < 1:
            raise InputError("ACS compares with a teacher whenever beta < 1; pass teacher= the full-precision model")
        labels = known_labels(self.view) if self.balanced else None
        if labels is not None:
            class_groups(labels, self.fraction)
        elif not self.balanced:
            whole_budget(self.size, self.fraction)

    def beta(self, epoch: int) -> float:
        """β of the schedule at `epoch`."""
        return beta_at(self.schedule, epoch, self.epochs)

    def _due(self, epoch: int) -> bool:
        return epoch % self.interval == 0

    def _select(self, epoch: int) -> Selection:
        if self.selection is None and self.first_select == "random":
            labels = labels_of(self.view) if self.balanced else None
            generator = generator_for(self.seed, Stream.SUBSET, epoch)
            return select(self.size, self.fraction, method="random", labels=labels, balanced=self.balanced, generator=generator)
        self._reestimate(epoch)
        self.table = self._score(self.beta(epoch))
        return select(self.table, self.fraction, by="acs", balanced=self.balanced)

    def _score(self, beta: float) -> ScoreTable:
        """One pass over the view: the terms that β needs, and their blend as column ``acs``."""
        names = [name for name, weight in (("evs", beta), ("ds", 1 - beta)) if weight > 0]
        teacher = self.teacher if beta < 1 else None
        first = teacher is not None and teacher.model is not None and not teacher.complete and not self._taught
        table = score_dataset(
            self.student,
            self.view,
            names,
            teacher=teacher,
            batch_size=self.batch_size,
            device=self.device,
            num_workers=self.num_workers,
            progress=self.progress,
            forward=self.forward,
        )
        self.scoring_forwards += self.size * (2 if first else 1)
        self._taught |= first
        return table.with_score("acs", blend(table.get("evs"), table.get("ds"), beta))

    def _reestimate(self, epoch: int) -> None:
        """Batch-norm statistics from plain random samples, full batches only, the same ones for the same (seed, epoch)."""
        if self.bn_reestimate == 0:
            return
        wanted = min(self.bn_reestimate, max(1, self.size // self.batch_size)) * self.batch_size
        indices = torch.randperm(self.size, generator=generator_for(self.seed, Stream.BATCH_NORM, epoch))[:wanted]
        batches = batches_of(self.view, self.batch_size, indices=indices, num_workers=self.num_workers)
        self.scoring_forwards += reestimate_batch_norm(self.student, (x for x, _ in batches), forward=self.forward)

    def finish(self) -> None:
        """After the last epoch: estimate the batch-norm statistics once more, when `bn_reestimate` asks for it."""
        self._reestimate(self.epochs)

    def _settings(self) -> dict[str, Any]:
        schedule = self.schedule if isinstance(self.schedule, str) else getattr(self.schedule, "__qualname__", type(self.schedule).__name__)
        names = ("fraction", "epochs", "interval", "balanced", "first_select", "bn_reestimate")
        return {**super()._settings(), "schedule": schedule, **{name: getattr(self, name) for name in names}}

    def state_dict(self) -> dict[str, Any]:
        """As `SelectionPolicy.state_dict`; the teacher's logits are not in it: the next pass computes the same ones again."""
        return {**super().state_dict(), "taught": self._taught}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; CheckpointError when it belongs to other settings."""
        super().load_state_dict(state)
        self._taught = state["taught"]


def _plain_view(dataset: Dataset, score_view: Dataset | None) -> Dataset:
    """The data set to score: `score_view`, or `dataset` when every read of it gives the same."""
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
