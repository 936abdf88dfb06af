"""Weights with a scale per group of inputs: shapes, layers that cannot have them, checkpoints."""

import copy

import pytest
import torch
from torch import nn

from fastqat.nn import QConfig, QuantConv2d, QuantLinear, calibrate, quantize, summary
from fastqat.quantizers import QuantSpec


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


X = torch.randn(5, 8, 4, 4, generator=torch.Generator().manual_seed(0))


def test_scales_have_the_shape_of_the_weight_with_its_groups() -> None:
    model = quantize(net(), "w4a4:group4", skip=())
    assert model[0].weight_quantizer.scale.shape == (6, 2, 3, 3)
    assert model[3].weight_quantizer.scale.shape == (16, 6)
    calibrate(model, [X])(X).square().sum().backward()
    for i in (0, 3, 5):
        scale = model[i].weight_quantizer.scale
        assert scale.grad.shape == scale.shape and (scale.grad != 0).any()
    assert "4 bit signed lsq per group of 4, scale " in str(summary(model))


def test_each_group_is_quantized_by_its_own_scale() -> None:
    layer = QuantLinear(8, 2, weight=QuantSpec(2, granularity=("group", 4), init="minmax"))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1] * 4 + [10.0] * 4, [-2.0] * 4 + [0.003] * 4]))
    layer.weight_quantizer.initialise_from(layer.weight)
    torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight)


def test_the_widest_group_is_a_channel_and_the_narrowest_one_weight() -> None:
    weight = net()[3].weight
    layers = [QuantLinear(24, 16, weight=QuantSpec(3, granularity=g)) for g in ("channel", ("group", 24), ("group", 1))]
    for layer in layers:
        layer.load_state_dict(net()[3].state_dict())
    channel, widest, narrowest = (layer.weight_quantizer(weight) for layer in layers)
    assert torch.equal(channel, widest)
    assert layers[2].weight_quantizer.scale.shape == weight.shape and narrowest.shape == weight.shape


def test_a_layer_that_cannot_be_cut_is_named_and_the_model_unchanged() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"layer '0': groups of 16 do not divide the 8 inputs of its weight \[6, 8, 3, 3\]"):
        quantize(model, "w4a4:group16", skip=(), inplace=True)
    assert not any(isinstance(m, (QuantConv2d, QuantLinear)) for m in model.modules())
    config = QConfig(QuantSpec(4, granularity=("group", 8)), overrides={"0": "w4a32:channel"})
    assert quantize(model, config, skip=())[0].weight_quantizer.scale.shape == (6,)


def test_depthwise_convolutions_have_one_input() -> None:
    with pytest.raises(ValueError, match="do not divide the 1 inputs"):
        QuantConv2d(8, 8, 3, groups=8, weight=QuantSpec(4, granularity=("group", 8)))
    with pytest.raises(ValueError, match="for weights only"):
        QuantLinear(8, 8, activation=QuantSpec(4, granularity=("group", 8)))


def test_a_checkpoint_of_another_granularity_does_not_fit() -> None:
    state = quantize(net(), "w4a4:group4", skip=()).state_dict()
    for other in ("w4a4:group8", "w4a4:channel", "w4a4"):
        with pytest.raises(RuntimeError, match="size mismatch"):
            quantize(net(), other, skip=()).load_state_dict(copy.deepcopy(state))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_of_a_weight_changes_nothing(layout: torch.memory_format) -> None:
    model = calibrate(quantize(net(), "w3a32:group4", skip=()), [X])
    moved = copy.deepcopy(model).to(memory_format=layout)
    for each in (model, moved):
        each(X).square().sum().backward()
    assert torch.equal(model[0].weight_quantizer(model[0].weight), moved[0].weight_quantizer(moved[0].weight))
    torch.testing.assert_close(moved[0].weight_quantizer.scale.grad, model[0].weight_quantizer.scale.grad)
    torch.testing.assert_close(moved[0].weight.grad, model[0].weight.grad)
