"""Rule of linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...ops.grad_norm.api import linear_grad_sq_norm
from .registry import Names, Rule, register_rule


def bias_grads(grad_y: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``[N, O]``: grad_y summed over the positions `dims`, in fp32 or fp64."""
    wide = torch.promote_types(grad_y.dtype, torch.float32)
    return grad_y.sum(dims, dtype=wide) if dims else grad_y.to(wide)


@register_rule(nn.Linear)
class LinearRule(Rule):
    """x ``[N, ..., I]``, grad_y ``[N, ..., O]``; reads nothing of the layer."""

    deferrable = True

    def is_batched(self, layer: nn.Linear, x: Tensor) -> bool:
        return x.dim() > 1

    def grads(self, layer: nn.Linear, x: Tensor, grad_y: Tensor, names: Names) -> dict[str, Tensor]:
        bias = bias_grads(grad_y, tuple(range(1, grad_y.dim() - 1)))
        if "weight" not in names:
            return {"bias": bias}
        wide = bias.dtype
        weight = torch.einsum("nti,nto->noi", _rows(x).to(wide), _rows(grad_y).to(wide))
        return {name: grad for name, grad in (("weight", weight), ("bias", bias)) if name in names}

    def sq_norm(self, layer: nn.Linear, x: Tensor, grad_y: Tensor, names: Names) -> Tensor:
        if "weight" not in names:
            return super().sq_norm(layer, x, grad_y, names)
        return linear_grad_sq_norm(x, grad_y, bias="bias" in names)


def _rows(x: Tensor) -> Tensor:
    """``[N, ..., I]`` → ``[N, T, I]``."""
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)
