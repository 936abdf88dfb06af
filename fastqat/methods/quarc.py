"""QuaRC: relative entropy score and cascaded layer correction (Tong, Yuan, Hu; 2025; arXiv 2507.17768)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._errors import InputError
from fastqat.methods.cascade import WEIGHT, Balance, BlockInput, CascadedCorrection, Grad
from fastqat.methods.cascade_terms import Distribution, Reduction
from fastqat.selection.budget import check_count
from fastqat.selection.forwards import device_of
from fastqat.selection.policies import ScoredSubset
from fastqat.selection.schedules import Schedule, beta_at, schedule_name
from fastqat.selection.scores.quarc import Normalize, blend
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache


class QuaRCSubset(ScoredSubset):
    """The selection of QuaRC by itself: every `interval` epochs all samples are scored anew and the best `fraction` is kept.

    d_S(x, t) = α(t) · ‖p_Q − y‖₂ + (1 − α(t)) · ‖p_Q − p_T‖₂ + KL(p_Q ‖ p_T), largest kept, round(fraction · n_c) of each class c when
    balanced. ``table`` has the three terms as ``evs``, ``ds`` and ``res`` beside ``quarc``. As `ACS` in all else.

    Args:
        dataset: what training reads, augmented or not; ``sampler`` yields its indices.
        student: the quantized model, calibrated; scored in eval mode and put back.
        teacher: the full-precision model, its logits ``[N, C]`` or a `TeacherCache`.
        epochs: length T of the whole training, which the schedule needs.
        schedule: of α; name or callable, see `fastqat.selection.beta_at`; ``cosine`` is cos(πt/2T).
        normalize: ``"none"``; ``"rank"`` or ``"zscore"`` put the three terms on one scale before they are added: the first two are at most
            √2, the third has no bound.
        options: all others of `fastqat.selection.ScoredSubset`; here fraction=0.01 and interval=50.

    Raises:
        InputError, DataError: as `ACS`.

    Source: Tong et al., QuaRC, 2025 (arXiv 2507.17768); `normalize` is our addition.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(200, 8), torch.arange(200) % 4)
        >>> chosen = QuaRCSubset(data, torch.nn.Linear(8, 4), torch.nn.Linear(8, 4), fraction=0.1, epochs=4, normalize="rank")
        >>> chosen.begin_epoch(0), len(chosen.selection), list(chosen.table)
        (True, 20, ['evs', 'ds', 'res', 'quarc'])
    """

    def __init__(
        self,
        dataset: Dataset,
        student: nn.Module,
        teacher: nn.Module | TeacherCache | Tensor,
        *,
        epochs: int,
        fraction: float = 0.01,
        interval: int | None = 50,
        schedule: str | Schedule = "cosine",
        normalize: Normalize = "none",
        **options: Any,
    ):
        self.epochs, self.schedule, self.normalize = check_count("epochs", epochs), schedule, normalize
        if normalize not in get_args(Normalize):
            raise InputError(f"normalize must be one of {', '.join(map(repr, get_args(Normalize)))}; got {normalize!r}")
        super().__init__(dataset, student, teacher, score="quarc", epochs=epochs, fraction=fraction, interval=interval, **options)

    def beta(self, epoch: int) -> float:
        """α of the schedule at `epoch`."""
        return beta_at(self.schedule, epoch, self.epochs)

    def _all_names(self) -> list[str]:
        return ["evs", "ds", "res"]

    def _names(self, epoch: int) -> list[str]:
        # A term of weight 0 is scored too: it is for the log, and the third needs both models to run anyway.
        self.beta(epoch)
        return self._all_names()

    def _complete(self, table: ScoreTable, epoch: int) -> ScoreTable:
        terms = table.get("evs"), table.get("ds"), table["res"]
        return table.with_score("quarc", blend(*terms, self.beta(epoch), self.normalize))

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "schedule": schedule_name(self.schedule), "normalize": self.normalize}


class QuaRC(QuaRCSubset):
    """Quantization-aware training on about a hundredth of the data: `QuaRCSubset` selects it, `loss` makes the most of it.

    L = L_KD + λ L_CLC, L_KD = −Σ_m p_T,m log p_Q,m (softmax at temperature 1, a mean over the batch), L_CLC: `CascadedCorrection`.

    Args:
        dataset, epochs, fraction, interval, options: of `QuaRCSubset`.
        student: the quantized model, calibrated, or it in `DistributedDataParallel` or compiled.
        teacher: the full-precision model, or a `TeacherCache` made from it.
        layers, distribution, reduction, balance, ratio, weight, block_input, grad: of `CascadedCorrection`.

    Raises:
        InputError, DataError: as these two.

    Attributes:
        correction: the `CascadedCorrection`; ``correction.last_ratio`` is λ L_CLC / L_KD of the last batch.
        teacher_logits: of the last batch, for `observe` where ``score_source="train"``.

    Source: Tong et al., QuaRC, 2025 (arXiv 2507.17768).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(200, 8), torch.arange(200) % 4)
        >>> student, teacher = (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(2))
        >>> quarc = QuaRC(data, student, teacher, fraction=0.1, epochs=4, interval=2, layers=["0"])
        >>> for epoch in range(4):
        ...     changed = quarc.begin_epoch(epoch)
        ...     for x, y in DataLoader(data, 10, sampler=quarc.sampler):
        ...         loss, logits = quarc.loss(x)
        ...         loss.backward()
        >>> len(quarc.selection), bool(quarc.correction.last_ratio > 0)
        (20, True)
    """

    def __init__(
        self,
        dataset: Dataset,
        student: nn.Module,
        teacher: nn.Module | TeacherCache,
        *,
        epochs: int,
        layers: str | Iterable[str] | Mapping[str, str] = "blocks",
        distribution: Distribution = "channel",
        reduction: Reduction = "elements",
        balance: Balance = "auto",
        ratio: float = 1.0,
        weight: float = WEIGHT,
        block_input: BlockInput = "own",
        grad: Grad = "joint",
        **options: Any,
    ):
        model = teacher.model if isinstance(teacher, TeacherCache) else teacher
        if not isinstance(model, nn.Module):
            raise InputError("teacher must be the full-precision model: its layers are compared, and logits alone have none")
        self.correction = CascadedCorrection(
            student, model, layers=layers, distribution=distribution, reduction=reduction, balance=balance, ratio=ratio, weight=weight,
            block_input=block_input, grad=grad,
        )  # fmt: skip
        super().__init__(dataset, student, teacher, epochs=epochs, **options)
        self.teacher_logits: Tensor | None = None

    def loss(self, x: Any, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """L_KD + λ L_CLC of a batch, and the student's logits ``[B, K]``: both models run in here.

        Args:
            x: inputs of both models, on their device. Under ``torch.autocast`` both run in its dtype; the loss is fp32 all the same.
            indices: int64 ``[B]``, the samples' places in the data set, such as `fastqat.selection.IndexedDataset` gives; needed where the
                selector gives samples loss weights (``method="infobatch"``): the means are then of weight · loss.

        Raises:
            InputError: as `CascadedCorrection`, or no `indices` where there are loss weights.
        """
        weights = self._loss_weights(indices)
        logits, self.teacher_logits, correction = self.correction(x, weights=weights)
        each = F.cross_entropy(logits.float(), self.teacher_logits.softmax(1), reduction="none")
        kd = (each if weights is None else each * weights).mean()
        return kd + self.correction.weighted(correction, kd), logits

    def _loss_weights(self, indices: Tensor | None) -> Tensor | None:
        if self.sampler.weights is None:
            return None
        if indices is None:
            raise InputError(f"method={self.method!r} gives samples loss weights; pass loss(x, indices), as IndexedDataset yields them")
        return self.sampler.loss_weights(indices).to(device_of(self.correction.student))

    def state_dict(self) -> dict[str, Any]:
        """As `ScoredSubset.state_dict`, with the state of the correction."""
        return {**super().state_dict(), "correction": self.correction.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; CheckpointError when it belongs to other settings."""
        super().load_state_dict(state)
        self.correction.load_state_dict(state["correction"])
