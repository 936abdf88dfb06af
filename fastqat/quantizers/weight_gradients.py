"""Per-sample gradients through `Quantizer.transform` of a weight: of the weight itself and of the parameters that move its values.

w̃ = transform(w) is what the layer quantizes, G the gradient of one sample by it. Where each value of w̃ depends on its own w alone, and a
few values of w, the pivots p, move all of w̃ (the largest, which the others are divided by), the gradient of w is

    ∂w̃ᵢ/∂wᵢ · Gᵢ  for the others,   Σᵢ ∂w̃ᵢ/∂w_p · Gᵢ  for a pivot:

a mask and one inner product per pivot, and its norm needs no G in memory. Other transforms get the G of a few samples at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.grad_norm.geometry import lift
from ..ops.grad_norm.op import grad_sq_norm, inner_products
from ..ops.quant_layer.weight_norms import Product
from .base import Quantizer
from .sample_gradients import slopes, stand_ins

MOST_PIVOTS = 4
"""Each costs as much as a forward pass of the layer; with more of them G is formed."""

_WEIGHT = "weight"
Found = tuple[Tensor | None, dict[str, Tensor]]


def weight_gradients(quantizer: Quantizer, weight: Tensor, product: Product, mask: Tensor, counted: bool) -> Found:
    """What one sample's loss says of `weight` and of the parameters that move its values.

    Args:
        quantizer: of `weight`.
        product: the layer, with x_hat and the gradient of its output.
        mask: the straight-through mask of the transformed weight, in fp32 (fp64).
        counted: whether the weight's own gradient counts.

    Returns:
        Its squared norm ``[N]`` or None, and the gradients ``[N, numel]`` of the parameters of `quantizer`.
    """
    with stand_ins(quantizer) as leaves:
        w = nn.Parameter(weight.detach())
        inputs = {_WEIGHT: w, **leaves} if counted else leaves
        y = quantizer.transform(w)
        pivots = quantizer.pivots(weight.detach())
        if pivots is None or len(pivots) > MOST_PIVOTS or quantizer.layout.axis not in (None, 0):
            return _formed(y, inputs, product, mask)
        probe = torch.ones_like(y).requires_grad_()
        pulled = torch.autograd.grad(y, list(inputs.values()), probe, create_graph=True, allow_unused=True)
        by_parameter = slopes(inputs, probe, pulled)
        columns = _columns(pulled[0], pivots, probe) if counted else []
    own = None
    if counted:
        by_parameter.pop(_WEIGHT)
        own = pulled[0].detach().clone(memory_format=torch.contiguous_format)
        own.view(-1)[pivots] = 0
    return _inner(product, mask, own, columns, by_parameter, quantizer.layout.axis is None)


def _columns(pulled: Tensor, pivots: Tensor, probe: Tensor) -> list[Tensor]:
    """∂w̃/∂w_p of each pivot p; `pulled` is Σ probe · ∂w̃/∂w, with its graph."""
    return [torch.autograd.grad(pulled.reshape(-1)[p], probe, retain_graph=True)[0] for p in pivots]


def _inner(
    product: Product, mask: Tensor, own: Tensor | None, columns: list[Tensor], by_parameter: dict[str, Tensor], per_tensor: bool
) -> Found:
    """From the derivatives of w̃: by each weight itself, `own`, with zeros at the pivots, by the pivots, and by the parameters."""
    x, grad_y, geometry = product
    factors = [lift(mask * each) for each in (*columns, *by_parameter.values())]
    sq_norm, inners = None, []
    if own is not None:
        first = factors[0] if factors else None
        sq_norm, inner = grad_sq_norm(x, grad_y, lift(mask * own), first, geometry.encode(), False, "direct")
        inners = [inner][: len(factors)]
    inners += [inner_products(x, grad_y, each, geometry) for each in factors[len(inners) :]]
    for inner in inners[: len(columns)]:
        sq_norm = sq_norm + inner.sum(1).square()
    of_parameters = inners[len(columns) :]
    return sq_norm, {
        name: inner.sum(1, keepdim=True) if per_tensor else inner for name, inner in zip(by_parameter, of_parameters, strict=True)
    }


def _formed(y: Tensor, inputs: dict[str, nn.Parameter], product: Product, mask: Tensor) -> Found:
    """Any transform, by differentiating it with the gradients of a few samples at a time, which go through memory."""
    parts: dict[str, list[Tensor]] = {}
    for gradient in product.gradients(y.shape):
        for name, each in _pulled_back(y, inputs, gradient.mul_(mask).to(y.dtype)).items():
            parts.setdefault(name, []).append(each.square().sum(1) if name == _WEIGHT else each)
    found = {name: torch.cat(each) for name, each in parts.items()}
    return found.pop(_WEIGHT, None), found


def _pulled_back(y: Tensor, inputs: dict[str, nn.Parameter], grads: Tensor) -> dict[str, Tensor]:
    """The gradients ``[n, numel]`` of those `inputs` that move `y`, for `grads` ``[n, *y.shape]``."""
    found = torch.autograd.grad(y, list(inputs.values()), grads, retain_graph=True, allow_unused=True, is_grads_batched=True)
    return {name: each.flatten(1) for name, each in zip(inputs, found, strict=True) if each is not None}
