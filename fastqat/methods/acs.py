"""ACS: adaptive coreset selection for quantization-aware training (Huang, Liu, Liu, Cheng; TMLR 2024; arXiv 2306.07215)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat.selection.budget import check_count
from fastqat.selection.policies import ScoredSubset
from fastqat.selection.schedules import Schedule, beta_at, schedule_name
from fastqat.selection.scores.acs import blend
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache


class ACS(ScoredSubset):
    """Train on the samples that matter now: every `interval` epochs all samples are scored anew and the best `fraction` is kept.

    d_ACS(x, t) = β(t) · ‖p_Q − y‖₂ + (1 − β(t)) · ‖p_Q − p_T‖₂, largest kept, round(fraction · n_c) of each class c when balanced. A
    sample that was dropped can return, because every selection looks at the whole set. A score whose weight is 0 is not computed: with
    ``cosine`` the teacher first runs at the second selection. The teacher's logits are kept (4·N·C bytes on the student's device, see
    `TeacherCache`), so that later passes run the student only.

    Args:
        dataset: what training reads, augmented or not; ``acs.sampler`` yields its indices.
        student: the quantized model, calibrated; scored in eval mode and put back.
        teacher: the full-precision model, its logits ``[N, C]`` or a `TeacherCache`; may be None when β stays 1.
        epochs: length E of the whole training, which the schedule needs.
        schedule: name or callable, see `fastqat.selection.beta_at`.
        options: all others of `fastqat.selection.ScoredSubset`: score_view, fraction=0.1, interval=10, balanced=True,
            first_select="scores", bn_reestimate=0, score_source="pass" (or "train", to score the samples that were just trained on without
            a forward of their own), warmup, anneal, method, batch_size, device, num_workers, progress, forward, scorer, seed,
            num_replicas, rank.

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
        schedule: str | Schedule = "cosine",
        **options: Any,
    ):
        self.epochs, self.schedule = check_count("epochs", epochs), schedule
        super().__init__(dataset, student, teacher, score="acs", epochs=epochs, **options)

    def beta(self, epoch: int) -> float:
        """β of the schedule at `epoch`."""
        return beta_at(self.schedule, epoch, self.epochs)

    def _all_names(self) -> list[str]:
        return ["evs", "ds"]

    def _names(self, epoch: int) -> list[str]:
        beta = self.beta(epoch)
        return [name for name, weight in (("evs", beta), ("ds", 1 - beta)) if weight > 0]

    def _complete(self, table: ScoreTable, epoch: int) -> ScoreTable:
        return table.with_score("acs", blend(table.get("evs"), table.get("ds"), self.beta(epoch)))

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "schedule": schedule_name(self.schedule)}
