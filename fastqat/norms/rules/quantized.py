"""Rule of quantizers that run by themselves, as in `fastqat.nn.FakeQuantize`; those of a quantized layer are part of its backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.quant_layer.api import encode
from ...ops.quant_layer.input_sums import input_side_per_sample
from ...ops.quant_layer.op import Operand
from ...quantizers import Quantizer
from ...quantizers.sample_gradients import ArgumentChain, added, transform_gradients
from .registry import Names, Rule, register_rule


@register_rule(Quantizer)
class QuantizerRule(Rule):
    """x ``[N, ...]``, an activation: one more backward pass of the quantizer, with its sums per sample."""

    parameters = None

    def refuses(self, layer: Quantizer) -> str | None:
        if layer.role == "weight" and any(True for _ in layer.parameters()):
            return "it quantizes a weight, which has no batch dimension, outside of a quantized layer; accepted: fastqat.nn's layers"
        return None

    def grads(self, layer: Quantizer, x: Tensor, grad_y: Tensor, names: Names) -> dict[str, Tensor]:
        y, args = layer.operand(x)
        found: dict[str, Tensor] = {}
        if args is not None:
            chain = ArgumentChain(layer, x)
            scale, zero_point, code, factor, per_scale = encode(y, args)
            operand = Operand(scale, zero_point, code)
            sums = input_side_per_sample(grad_y.clone(), y, operand, factor, per_scale, chain.scale, chain.zero_point)
            moved = {} if y is x else transform_gradients(layer, x, sums.grad_x, lambda y: y)
            found = added(chain(sums.scale, sums.zero_point), moved)
        shapes = {name: (x.shape[0], *parameter.shape) for name, parameter in layer.named_parameters() if name in names}
        wide = torch.promote_types(grad_y.dtype, torch.float32)
        return {
            name: found[name].reshape(shape) if name in found else grad_y.new_zeros(shape, dtype=wide) for name, shape in shapes.items()
        }
