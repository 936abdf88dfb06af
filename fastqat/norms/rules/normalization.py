"""Rules of layers that normalise and then multiply by a weight and add a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ops.affine_grad_norm.reference import Statistics
from .affine import AffineRule, Operands, by_channel
from .registry import register_rule


@register_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
class BatchNormRule(AffineRule):
    """x and grad_y ``[N, C, ...]``, normalised by the running statistics."""

    def refuses(self, layer: Any) -> str | None:
        if layer.training:
            return (
                "in train mode its statistics mix the samples, so that none has a gradient of its own; call eval() on it, or use GroupNorm"
            )
        if layer.running_mean is None:
            return (
                "without running statistics it takes those of the batch, which mix the samples; use track_running_stats=True, or GroupNorm"
            )
        return None

    def operands(self, layer: Any, x: Tensor, grad_y: Tensor) -> Operands:
        return Operands(by_channel(x), by_channel(grad_y), _running(layer))


@register_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
class InstanceNormRule(AffineRule):
    """x and grad_y ``[N, C, ...]``, each channel normalised by its own statistics in each sample, or in eval mode by running ones."""

    methods = frozenset({"forward", "_apply_instance_norm", "_get_no_batch_dim", "_handle_no_batch_input"})

    def is_batched(self, layer: Any, x: Tensor) -> bool:
        return x.dim() != layer._get_no_batch_dim()

    def operands(self, layer: Any, x: Tensor, grad_y: Tensor) -> Operands:
        own = layer.training or layer.running_mean is None
        statistics = Statistics("group", groups=x.shape[1], eps=layer.eps) if own else _running(layer)
        return Operands(by_channel(x), by_channel(grad_y), statistics)


@register_rule(nn.GroupNorm)
class GroupNormRule(AffineRule):
    """x and grad_y ``[N, C, ...]``, each group of channels normalised by its own statistics in each sample."""

    def operands(self, layer: nn.GroupNorm, x: Tensor, grad_y: Tensor) -> Operands:
        return Operands(by_channel(x), by_channel(grad_y), Statistics("group", groups=layer.num_groups, eps=layer.eps))


@register_rule(nn.LayerNorm)
class LayerNormRule(AffineRule):
    """x and grad_y ``[N, ..., *normalized_shape]``, each position normalised by its own statistics."""

    def is_batched(self, layer: nn.LayerNorm, x: Tensor) -> bool:
        return x.dim() > len(layer.normalized_shape)

    def operands(self, layer: nn.LayerNorm, x: Tensor, grad_y: Tensor) -> Operands:
        dims = len(layer.normalized_shape)
        return Operands(_elements_first(x, dims), _elements_first(grad_y, dims), Statistics("position", eps=layer.eps))


@register_rule(nn.RMSNorm)
class RMSNormRule(AffineRule):
    """As `LayerNormRule`, without a mean and a bias."""

    parameters = frozenset({"weight"})

    def is_batched(self, layer: nn.RMSNorm, x: Tensor) -> bool:
        return x.dim() > len(layer.normalized_shape)

    def operands(self, layer: nn.RMSNorm, x: Tensor, grad_y: Tensor) -> Operands:
        dims = len(layer.normalized_shape)
        wide = torch.promote_types(x.dtype, torch.float32)  # what torch takes eps=None from, bf16 and fp16 included
        eps = torch.finfo(wide).eps if layer.eps is None else layer.eps
        return Operands(_elements_first(x, dims), _elements_first(grad_y, dims), Statistics("rms", eps=eps))


def _running(layer: Any) -> Statistics:
    return Statistics("given", layer.running_mean, layer.running_var, eps=layer.eps)


def _elements_first(x: Tensor, dims: int) -> Tensor:
    """``[N, ..., *normalized_shape]`` → ``[N, D, T]``: the last `dims` dimensions are one, before the positions."""
    rows = x.flatten(-dims)
    return (rows.flatten(1, -2) if rows.dim() > 2 else rows.unsqueeze(1)).transpose(1, 2)
