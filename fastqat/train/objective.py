"""From ``--loss`` to what a batch minimises."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastqat.methods import CascadedCorrection
from fastqat.train.batches import TrainBatch
from fastqat.train.config import TrainConfig
from fastqat.train.engine import Forward, Objective


class CorrectedObjective(Objective):
    """Distillation with the layer correction of QuaRC: L_KD + λ L_CLC.

    Args:
        correction: of the model in training and its teacher.
    """

    def __init__(self, correction: CascadedCorrection):
        super().__init__(correction.teacher, distil=True)
        self.correction = correction

    def forward(self, model: nn.Module, batch: TrainBatch, weights: Tensor | None, *, asks: bool) -> Forward:
        """As `Objective.forward`, both models compared layer by layer."""
        logits, taught, correction = self.correction(batch.x, student=model, weights=weights)
        kd = self(logits.float(), batch.y, taught, weights)
        added = self.correction.weighted(correction, kd, share=batch.share)
        return Forward(logits, taught, kd + added, (kd, added))

    def state_dict(self) -> dict[str, Any]:
        """That of the correction."""
        return self.correction.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.correction.load_state_dict(state)


def make_objective(config: TrainConfig, student: nn.Module, teacher: nn.Module) -> Objective:
    """The loss of `config`.

    Raises:
        InputError: ``kd_clc`` with layers that one of the models does not have.
    """
    if config.loss != "kd_clc":
        return Objective(teacher, distil=config.loss == "kd")
    return CorrectedObjective(
        CascadedCorrection(
            student,
            teacher,
            layers=config.clc_layers,
            distribution=config.clc_distribution,
            reduction=config.clc_reduction,
            weight=config.clc_weight,
            balance=config.clc_balance,
            ratio=config.clc_ratio,
            block_input=config.clc_block_input,
            grad=config.clc_grad,
        )
    )
