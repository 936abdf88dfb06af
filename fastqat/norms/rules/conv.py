"""Rules of convolutions and transposed convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ...ops.grad_norm import op, reference
from ...ops.grad_norm.api import conv_operand
from ...ops.grad_norm.geometry import Geometry, lift
from .linear import bias_grads
from .registry import Names, Rule, register_rule


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ConvRule(Rule):
    """x ``[N, C, ...]``, grad_y ``[N, O, ...]``; every padding and padding mode."""

    methods = frozenset({"forward", "_conv_forward"})
    deferrable = True

    def is_batched(self, layer: Any, x: Tensor) -> bool:
        return x.dim() == len(layer.kernel_size) + 2

    def grads(self, layer: Any, x: Tensor, grad_y: Tensor, names: Names) -> dict[str, Tensor]:
        grads = {}
        if "weight" in names:
            grads["weight"] = _weight_grads(layer, *_operands(layer, x, grad_y))
        if "bias" in names:
            grads["bias"] = bias_grads(grad_y, tuple(range(2, grad_y.dim())))
        return grads

    def sq_norm(self, layer: Any, x: Tensor, grad_y: Tensor, names: Names) -> Tensor:
        if "weight" not in names:
            return super().sq_norm(layer, x, grad_y, names)
        return _sq_norm(*_operands(layer, x, grad_y), bias="bias" in names)


@register_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class ConvTransposeRule(Rule):
    """The weight gradient is that of a convolution which reads grad_y and whose output has the gradient x."""

    methods = frozenset({"forward", "_output_padding"})
    deferrable = True

    def is_batched(self, layer: _ConvTransposeNd, x: Tensor) -> bool:
        return x.dim() == len(layer.kernel_size) + 2

    def refuses(self, layer: _ConvTransposeNd) -> str | None:
        if any(extra >= stride for extra, stride in zip(layer.output_padding, layer.stride, strict=True)):
            return f"output_padding {tuple(layer.output_padding)} is not below stride {tuple(layer.stride)}"
        return None

    def grads(self, layer: _ConvTransposeNd, x: Tensor, grad_y: Tensor, names: Names) -> dict[str, Tensor]:
        grads = {}
        if "weight" in names:
            grads["weight"] = _weight_grads(layer, *_operands(layer, grad_y, x))
        if "bias" in names:
            grads["bias"] = bias_grads(grad_y, tuple(range(2, grad_y.dim())))
        return grads

    def sq_norm(self, layer: _ConvTransposeNd, x: Tensor, grad_y: Tensor, names: Names) -> Tensor:
        if "weight" not in names:
            return super().sq_norm(layer, x, grad_y, names)
        weight = _sq_norm(*_operands(layer, grad_y, x), bias=False)
        return weight + super().sq_norm(layer, x, grad_y, Names({"bias"})) if "bias" in names else weight


def _operands(layer: _ConvNd, x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Geometry]:
    """What the operator takes; x is padded here where the operator cannot."""
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    x, geometry = conv_operand(x, layer.kernel_size, layer.stride, padding, layer.dilation, layer.groups)
    return lift(x), lift(grad_y), geometry


def _sq_norm(x: Tensor, grad_y: Tensor, geometry: Geometry, bias: bool) -> Tensor:
    return op.grad_sq_norm(x, grad_y, None, None, geometry.encode(), bias, "auto")[0]


def _weight_grads(layer: _ConvNd, x: Tensor, grad_y: Tensor, geometry: Geometry) -> Tensor:
    """``[N, *weight.shape]``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    n, outputs, *size = grad_y.shape
    grads = grad_y.to(wide).reshape(n, geometry.groups, outputs // geometry.groups, -1)
    return reference.per_sample(reference.unfold(x.to(wide), tuple(size), geometry), grads).reshape(n, *layer.weight.shape)
