"""The operator ``fastqat::quant_layer_norms_backward``: the backward pass of a quantized layer that returns per-sample gradients too.

The forward pass is that of ``fastqat::quant_layer``. Backward, x_hat is computed once, for the batch's weight gradient (where that is
needed) and for the norms, and the pass that makes grad_x also makes the sums of the input's scale, per sample. The gradients that
``quant_layer_backward`` returns come out with the same bits, but for those of the input's scale and zero point: they are the sums of
the samples', within the same error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._autograd import once, op_function
from .._library import define_op, without_autocast
from .input_sums import input_side_per_sample, over_samples
from .op import (
    OPERANDS,
    Needs,
    Operand,
    QuantLayer,
    backward_fake,
    input_gradient,
    nothing,
    returned,
    weight_side,
)
from .weight_norms import Product, straight_through_mask, weight_side_per_sample


class SampleNorms(NamedTuple):
    """What the attribute `sample_norms` of a quantized layer holds while per-sample norms are collected.

    Attributes:
        names: the parameters of the layer that count, as in ``layer.named_parameters()``: ``"weight"``, ``"weight_quantizer.scale"``, ...
        anchor: an empty tensor that requires a gradient, so that the output of a layer does whose parameters are all frozen.
        deliver: called once per backward pass of the layer with the squared norm ``[N]`` of the gradients of weight and bias, and the
            gradients ``[N, numel]`` of each parameter of the quantizers; all fp32, without a graph, of the loss as differentiated.
    """

    names: frozenset[str]
    anchor: Tensor
    deliver: Callable[[Tensor, dict[str, Tensor]], None]


class SampleGradients(NamedTuple):
    """What the backward pass of one layer found; empty where it was not asked for.

    Attributes:
        sq_norm: ``[N]``, of weight and bias, as far as they count.
        x_scale, x_zero_point, w_scale, w_zero_point: ``[N, scales]``.
        grad_x: the gradient of the x that the operator was given.
        weight_product: the product that the weight takes part in, for what else is to be had of it, and the straight-through mask of a
            quantized weight; x is quantized once more.
    """

    sq_norm: Tensor
    x_scale: Tensor
    x_zero_point: Tensor
    w_scale: Tensor
    w_zero_point: Tensor
    grad_x: Tensor
    weight_product: Callable[[], tuple[Product, Tensor]]


class Wanted(NamedTuple):
    """What `quant_conv` and `quant_linear` deliver from their backward pass; `anchor` as in `SampleNorms`.

    `counted` says which of the operator's tensors per-sample gradients are wanted of; of x it is the gradient as it is.
    """

    counted: Needs
    anchor: Tensor
    deliver: Callable[[SampleGradients], None]


@without_autocast
def _backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor | None,
    x_zero_point: Tensor | None,
    w_scale: Tensor | None,
    w_zero_point: Tensor | None,
    x_code: list[int],
    w_code: list[int],
    conv: list[int],
    factors: list[float],
    per_scale: list[bool],
    needs: list[bool],
    counted: list[bool],
) -> tuple[Tensor, ...]:
    x_quant, w_quant = Operand(x_scale, x_zero_point, x_code), Operand(w_scale, w_zero_point, w_code)
    batch, sample = Needs(*needs), Needs(*counted)
    grads = [nothing(x) for _ in range(12)]
    grads[7] = x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    if batch.weight_side or sample.weight_side:  # first, so that x_hat is gone before the gradient of x is allocated
        x_hat = x_quant.apply(x)
        if batch.weight_side:
            grads[1], grads[2], *grads[5:7] = weight_side(grad_y, x_hat, weight, w_quant, conv, factors[1], per_scale[1], batch)
        if sample.weight_side:
            product = Product.of(x_hat, grad_y, weight, conv)
            grads[7], grads[10], grads[11] = weight_side_per_sample(product, weight, w_quant, factors[1], per_scale[1], sample)
            del product
        del x_hat
    if batch.input_side or sample.input_side:
        scale, zero_point = batch.x_scale or sample.x_scale, batch.x_zero_point or sample.x_zero_point
        grad = input_gradient(grad_y, x, w_quant.apply(weight), conv)
        found = input_side_per_sample(grad, x, x_quant, factors[0], per_scale[0], scale, zero_point)
        grads[0], grads[8], grads[9] = found
        grads[3:5] = (over_samples(each, x_quant) if need else nothing(x) for each, need in zip(found[1:], batch[3:5], strict=True))
    return tuple(grads)


def _backward_fake(grad_y: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    x_scale, _, w_scale, _, *_, needs, counted = rest
    batch, sample = Needs(*needs), Needs(*counted)
    wide = torch.promote_types(x.dtype, torch.float32)
    x_sums = (batch.x_scale or sample.x_scale, batch.x_zero_point or sample.x_zero_point)
    input_side = batch.input_side or sample.input_side
    gradients = backward_fake(grad_y, x, weight, *rest[:-2], [input_side, *batch[1:]])
    sums = [
        nothing(x) if scale is None or not done else scale.new_empty(x.shape[0], scale.numel())
        for scale, done in zip((x_scale, x_scale, w_scale, w_scale), (*x_sums, sample.w_scale, sample.w_zero_point), strict=True)
    ]
    return *gradients, x.new_empty(x.shape[0], dtype=wide), *sums


# The seven gradients of quant_layer_backward, then the squared norm [N] of weight and bias, and the gradients [N, scales] of scale and zero
# point of x and of the weight; one that was not asked for is empty.
quant_layer_norms_backward = define_op(
    f"quant_layer_norms_backward(Tensor grad_y, Tensor x, Tensor weight, {OPERANDS}, float[] factors, bool[] per_scale, bool[] needs, "
    f"bool[] counted) -> ({', '.join(['Tensor'] * 12)})",
    _backward,
    _backward_fake,
)


def _weight_product(
    grad_y: Tensor, x: Tensor, weight: Tensor, x_quant: Operand, w_quant: Operand, conv: list[int]
) -> tuple[Product, Tensor]:
    return Product.of(x_quant.apply(x), grad_y, weight, conv), straight_through_mask(weight, w_quant)


@op_function
class QuantLayerNorms(QuantLayer):
    """Saves what `QuantLayer` saves; its backward delivers what is wanted."""

    @staticmethod
    def compute(*args: Any) -> Tensor:
        """args: those of `QuantLayer`, then the anchor and the `Wanted`."""
        return QuantLayer.compute(*args[:-2])

    @staticmethod
    def save(ctx: Any, *args: Any) -> None:
        QuantLayer.save(ctx, *args[:-2])
        ctx.wanted = args[-1]

    @staticmethod
    @once
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it as *Any
        x, weight, *quantizers = ctx.saved_tensors
        x_code, w_code, conv, *_ = ctx.options
        counted, needs = ctx.wanted.counted, list(ctx.needs_input_grad[:7])
        found = quant_layer_norms_backward(grad_y, x, weight, *quantizers, *ctx.options, needs, list(counted))
        x_scale, x_zero_point, w_scale, w_zero_point = quantizers
        x_quant, w_quant = Operand(x_scale, x_zero_point, x_code), Operand(w_scale, w_zero_point, w_code)
        product = partial(_weight_product, grad_y, x, weight, x_quant, w_quant, conv)
        ctx.wanted.deliver(SampleGradients(*found[7:], found[0], product))  # type: ignore[call-arg]  # mypy does not count the elements
        return *returned(ctx, found[:7], quantizers), None, None
