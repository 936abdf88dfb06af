"""What the rules of layers with ``y = weight · x_hat + bias`` share: views of x and grad_y as ``[N, C, T]``, and both ways to the norm."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...ops.affine_grad_norm import op, reference
from ...ops.affine_grad_norm.reference import Statistics
from .registry import Names, Rule


class Operands(NamedTuple):
    """x and grad_y as views ``[N, C, T]``, a channel for each element of the parameters, and how x_hat follows from x."""

    x: Tensor
    grad_y: Tensor
    statistics: Statistics


class AffineRule(Rule):
    """A weight that multiplies x_hat and a bias that is added, both of C elements; reads the layer's statistics, not its parameters."""

    def operands(self, layer: Any, x: Tensor, grad_y: Tensor) -> Operands:
        """How this layer looks to the operator."""
        raise NotImplementedError

    def grads(self, layer: Any, x: Tensor, grad_y: Tensor, names: Names) -> dict[str, Tensor]:
        operands, found = self.operands(layer, x, grad_y), {}
        if "weight" in names:
            found["weight"] = reference.weight_gradient(*operands)
        if "bias" in names:
            found["bias"] = reference.bias_gradient(operands.grad_y)
        return {name: grad.reshape(x.shape[0], *getattr(layer, name).shape) for name, grad in found.items()}

    def sq_norm(self, layer: Any, x: Tensor, grad_y: Tensor, names: Names) -> Tensor:
        return op.sq_norm(*self.operands(layer, x, grad_y), "weight" in names, "bias" in names)


def by_channel(x: Tensor, axis: int = 1) -> Tensor:
    """``[N, C, T]`` with the channels of dimension `axis`; a view of contiguous and channels-last memory."""
    return x.movedim(axis, 1).flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def as_one_channel(x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as ``[N, 1, T]``, in the order in which x lies in memory."""
    order = [0, *sorted(range(1, x.dim()), key=x.stride, reverse=True)]
    first, second = (t.permute(order).reshape(t.shape[0], 1, t[:1].numel()) for t in (x, grad_y))
    return first, second
