"""Quantization misses: how often the copies at lower precision lost a sample that they had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.selection.recording.dynamics import Dynamics


@register_score(
    "misses",
    formula="Σ_b #{e: right at e − 1, wrong at e, at b bits}; never right at b bits: the number of checkpoints",
    direction="largest",
    needs=("targets", "dynamics"),
    source="QCore, Campos et al., PVLDB 17(11), 2024 (arXiv 2404.13990)",
)
def misses(dynamics: Dynamics) -> Tensor | None:
    """Checkpoints at which the copy at b bits turned from right to wrong, summed over the bit-widths recorded. ``[N]``."""
    return torch.stack([copy.losses_or_most() for copy in dynamics.bits.values()]).sum(0) if dynamics.bits else None
