"""Gradient factors that the ops do not apply themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def per_scale_share(x: Tensor, scale: Tensor) -> float:
    """1/√N with N the elements of x that share one scale, batch included: what ``grad_factor="per_scale"`` still lacks."""
    return 1 / math.sqrt(max(x.numel() // scale.numel(), 1))


def scaled_gradient(values: Tensor, factor: float) -> Tensor:
    """The same bits as `values`, with its gradient times `factor`; as tensor maths, so that a compiled graph serves every batch size."""
    if not values.requires_grad or not torch.is_grad_enabled():
        return values
    return values.detach() + (values - values.detach()) * factor
