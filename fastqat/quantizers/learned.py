"""Learned: what quantizers with a learned range share: the floor under it, in training, in checkpoints and in exported graphs."""

from __future__ import annotations

from typing import Any

import torch

from ..ops._autograd import transforming
from .base import Quantizer


def _traced_for_export() -> bool:
    # The dynamo of torch 2.10 answers True to is_exporting in an ordinary torch.compile too.
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


class Learned(Quantizer):
    """Base of the quantizers that learn their range: puts the parameters back where they stand for a usable grid.

    `project` runs in place at the start of each training forward and before the state is saved: no host sync, the same on every process,
    and exact on resuming. A subclass reads its parameters as they are where `projects` says so, and limits what it reads elsewhere.

    `torch.export` takes the model in either mode; by default (``strict=False``) it leaves the parameters alone and the graph limits what
    it reads. What it returns computes outputs only; train the module itself.
    """

    def project(self) -> None:
        """Put the parameters back, in place; through ``.data``: a layer used twice in one forward projects twice, and the second time
        must not invalidate what the first saved."""
        raise NotImplementedError(f"{type(self).__name__} must define project()")

    def projects(self) -> bool:
        """Project in a training forward; whether the parameters can now be read as they are."""
        if not self.training or not torch.is_grad_enabled() or _traced_for_export() or transforming():
            return False
        self.project()
        return True

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.project()
        super()._save_to_state_dict(destination, prefix, keep_vars)
