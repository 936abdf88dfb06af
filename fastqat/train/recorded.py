"""What a training says of its samples: the float stage is recorded, and ends in a table of scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from fastqat.selection.policies import WholeSet
from fastqat.selection.recorder import DynamicsRecorder


class RecordedSet(WholeSet):
    """All samples in every epoch, each showing of each sample recorded: `recorder` has the dynamics at the end, resumed or not.

    Example:
        >>> import torch
        >>> policy = RecordedSet([0, 1, 0], seed=0)
        >>> policy.observe(torch.arange(3), torch.eye(3), torch.tensor([0, 1, 1]))
        >>> policy.recorder.table(["aum"])["aum"]
        tensor([ 1.,  1., -1.])
    """

    def __init__(self, dataset: Dataset | list[Any], *, seed: int):
        super().__init__(dataset, seed=seed)
        self.recorder = DynamicsRecorder(self.size)

    def observe(self, indices: Tensor, logits: Tensor, targets: Tensor | None = None, teacher_logits: Tensor | None = None) -> None:
        """Record one batch of the training forward."""
        assert targets is not None, "the trainer has labels"
        self.recorder.update(indices, logits.detach(), targets)

    def end_epoch(self) -> None:
        """With several processes: put together what all of them saw."""
        self.recorder.synchronise()

    def state_dict(self) -> dict[str, Any]:
        """With the recording so far."""
        return {**super().state_dict(), "recorder": self.recorder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on recording where `state_dict` was taken."""
        super().load_state_dict(state)
        self.recorder.load_state_dict(state["recorder"])
