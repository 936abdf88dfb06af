"""The last layer's per-sample gradient norm in plain torch, in fp64 whatever the storage type."""

from __future__ import annotations

import torch
from torch import Tensor

from ..logit_scores.reference import field_names
from ..logit_scores.reference import forward as logit_scores

_EVS = field_names(True, False).index("evs")


def allocate(logits: Tensor, features: Tensor) -> Tensor:
    """The empty result ``[N]``: fp32, or fp64 where an input is."""
    wide = torch.float64 in (logits.dtype, features.dtype)
    return logits.new_empty(logits.shape[0], dtype=torch.float64 if wide else torch.float32)


def forward(logits: Tensor, targets: Tensor, features: Tensor, bias: bool) -> Tensor:
    """‖p − y‖ · √(bias + ‖h‖²); NaN where the target is no class."""
    scores = logit_scores(logits.double(), targets, None)
    sq_norm = features.double().square().sum(1) + float(bias)
    return (scores[_EVS] * sq_norm.sqrt()).to(allocate(logits, features).dtype)


def eager_grand_last(logits: Tensor, targets: Tensor, features: Tensor, bias: bool = True) -> Tensor:
    """The same as one would type it in the storage type: what `grand_last` is measured against."""
    error = logits.softmax(1).scatter_add(1, targets[:, None], -torch.ones_like(logits[:, :1]))
    return error.norm(dim=1) * (features.square().sum(1) + float(bias)).sqrt()
