"""Rule of PReLU."""

from __future__ import annotations

from torch import Tensor, nn

from ...ops.affine_grad_norm.reference import Statistics
from .affine import AffineRule, Operands, as_one_channel, by_channel
from .registry import register_rule


@register_rule(nn.PReLU)
class PReLURule(AffineRule):
    """x and grad_y ``[N, C, ...]``; the slope of each channel, or the one slope, multiplies min(x, 0)."""

    parameters = frozenset({"weight"})

    def operands(self, layer: nn.PReLU, x: Tensor, grad_y: Tensor) -> Operands:
        one = layer.num_parameters == 1
        x, grad_y = as_one_channel(x, grad_y) if one else (by_channel(x), by_channel(grad_y))
        return Operands(x, grad_y, Statistics("negative"))
