"""Gradients of weight and bias of ``y = weight · x_hat + bias`` for each sample in plain torch, in fp32 (fp64 for fp64)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("none", "negative", "given", "group", "position", "rms")  # the native kernels take the index


class Statistics(NamedTuple):
    """How x_hat follows from x ``[N, C, T]``.

    ==========  ======================================================================
    kind        x_hat
    ==========  ======================================================================
    none        x: a layer that only scales
    negative    min(x, 0): PReLU
    given       (x − mean) / √(var + eps), mean and var ``[C]``: BatchNorm in eval mode
    group       the same with the statistics of each of `groups` groups of channels and all positions of a sample: GroupNorm, InstanceNorm
    position    the same with the statistics of all channels at one position: LayerNorm
    rms         x / √(mean of x² + eps), the mean over all channels at one position: RMSNorm
    ==========  ======================================================================
    """

    kind: str
    mean: Tensor | None = None
    var: Tensor | None = None
    groups: int = 1
    eps: float = 0.0


def normalized(x: Tensor, statistics: Statistics) -> Tensor:
    """x_hat ``[N, C, T]`` of x ``[N, C, T]``."""
    kind, mean, var, groups, eps = statistics
    if kind == "none":
        return x
    if kind == "negative":
        return x.clamp_max(0)
    if kind == "given":
        assert mean is not None and var is not None
        return (x - mean[:, None]) * (var[:, None] + eps).rsqrt()
    if kind == "rms":
        return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()
    cut, dim = (x.unflatten(1, (groups, -1)).flatten(2), 2) if kind == "group" else (x, 1)
    centred = cut - cut.mean(dim, keepdim=True)
    centred = centred - centred.mean(dim, keepdim=True)  # what rounding a mean that is large beside the deviation has left
    return (centred * (centred.square().mean(dim, keepdim=True) + eps).rsqrt()).reshape(x.shape)


def weight_gradient(x: Tensor, grad_y: Tensor, statistics: Statistics) -> Tensor:
    """Σ_t grad_y · x_hat ``[N, C]``."""
    wide = torch.promote_types(torch.promote_types(x.dtype, grad_y.dtype), torch.float32)
    mean, var = (None if t is None else t.to(wide) for t in (statistics.mean, statistics.var))
    return (grad_y.to(wide) * normalized(x.to(wide), statistics._replace(mean=mean, var=var))).sum(2)


def bias_gradient(grad_y: Tensor) -> Tensor:
    """Σ_t grad_y ``[N, C]``."""
    return grad_y.sum(2, dtype=torch.promote_types(grad_y.dtype, torch.float32))


def sq_norm(x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool, bias: bool) -> Tensor:
    """Σ_c (Σ_t grad_y · x_hat)² where `weight`, plus Σ_c (Σ_t grad_y)² where `bias`: ``[N]``."""
    total = x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    if weight:
        total = total + weight_gradient(x, grad_y, statistics).square().sum(1)
    return total + bias_gradient(grad_y).square().sum(1) if bias else total
