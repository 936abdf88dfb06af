"""A whole quantized model by other means: the model that `fastqat.quantize` made with the quantized layers of another package."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastqat.nn import QuantConv2d, QuantLinear
from fastqat.nn.layer import QuantLayer

BITS = 4
CONV_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "groups")


def _replaced(model: nn.Module, build: Callable[[QuantLayer], nn.Module]) -> nn.Module:
    """A copy of `model` with ``build(layer)`` in place of every quantized layer."""
    model = copy.deepcopy(model)
    for path, layer in [(path, layer) for path, layer in model.named_modules() if isinstance(layer, QuantLayer)]:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, build(layer))
    return model


def brevitas_copy(model: nn.Module) -> nn.Module:
    """Every quantized layer as brevitas' of the same type, with per-tensor scales that are parameters, found from the first batch."""
    import brevitas.nn as qnn
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Uint8ActPerTensorFloat

    learned: dict[str, Any] = {"bit_width": BITS, "scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS}
    weight = type("Weight", (Int8WeightPerTensorFloat,), learned)
    signed = type("Signed", (Int8ActPerTensorFloat,), {**learned, "collect_stats_steps": 1})
    unsigned = type("Unsigned", (Uint8ActPerTensorFloat,), {**learned, "collect_stats_steps": 1})

    def build(layer: QuantLayer) -> nn.Module:
        quantizer = layer.activation_quantizer
        options = {"weight_quant": weight, "input_quant": signed if quantizer is None or quantizer.signed else unsigned}
        bias = layer._parameters["bias"]
        if isinstance(layer, QuantConv2d):
            shape = {name: getattr(layer, name) for name in CONV_OPTIONS}
            new = qnn.QuantConv2d(layer.in_channels, layer.out_channels, bias=bias is not None, **shape, **options)
        elif isinstance(layer, QuantLinear):
            new = qnn.QuantLinear(layer.in_features, layer.out_features, bias=bias is not None, **options)
        else:
            raise TypeError(f"no brevitas layer for {type(layer).__name__} here; accepted: QuantConv2d, QuantLinear")
        new.load_state_dict({"weight": layer.weight} if bias is None else {"weight": layer.weight, "bias": bias}, strict=False)
        return new

    return _replaced(model, build).train()


def torchao_copy(model: nn.Module, x: Tensor) -> nn.Module:
    """Every quantized linear layer as torchao's: int4 weights with learned scales per row, int8 activations by token."""
    from torchao.quantization.qat import IntxFakeQuantizeConfig, initialize_fake_quantizers
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    weight = IntxFakeQuantizeConfig(torch.int4, "per_channel", is_symmetric=True, is_dynamic=False, range_learning=True)
    activation = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)

    def build(layer: QuantLayer) -> nn.Module:
        if not isinstance(layer, QuantLinear):
            raise TypeError(f"torchao quantizes linear layers only; the model has a {type(layer).__name__}")
        new = FakeQuantizedLinear.from_linear(layer, activation, weight)
        new.bias = layer.bias
        return new

    copied = _replaced(model, build).train()
    initialize_fake_quantizers(copied, (x,))
    return copied
