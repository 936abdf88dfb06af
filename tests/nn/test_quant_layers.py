"""Quantized layers against torch's own layer run on the fake-quantized operands."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastqat.nn import FakeQuantize, QuantConv, QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear, calibrate
from fastqat.quantizers import QuantSpec

PAIRS = {1: (nn.Conv1d, QuantConv1d), 2: (nn.Conv2d, QuantConv2d), 3: (nn.Conv3d, QuantConv3d)}
SPECS = {
    "w4a4": (QuantSpec(4), QuantSpec(4, signed="auto")),
    "w2a32": (QuantSpec(2), None),
    "w32a8": (None, QuantSpec(8)),
    "float": (None, None),
    "channel": (QuantSpec(4, granularity="channel"), QuantSpec(6, granularity="channel")),
    "minmax": (QuantSpec(8, "minmax"), QuantSpec(8, "minmax", symmetric=False)),
    "per_scale": (QuantSpec(4, grad_factor="per_scale"), QuantSpec(4, grad_factor="per_scale", semantics="reciprocal")),
}


def parameter_grads(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def check_against_torch(layer: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Output and every gradient of `layer` equal those of `plain` on operands quantized one by one."""
    plain.load_state_dict(layer.state_dict(), strict=False)
    calibrate(layer, [x])
    layer.eval()  # a min-max range then stays as it is
    x_own, x_ref = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(x_own)
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    own = parameter_grads(layer)
    layer.zero_grad()

    single = x.dim() < layer.weight.dim() or x.dim() == 1
    batch = x_ref.unsqueeze(0) if single else x_ref
    x_hat = layer.activation_quantizer(batch) if layer.activation_quantizer is not None else batch
    w_hat = layer.weight_quantizer(layer.weight) if layer.weight_quantizer is not None else layer.weight
    expected = functional_call(plain, {"weight": w_hat} | ({"bias": layer.bias} if layer.bias is not None else {}), x_hat)
    expected = expected.squeeze(0) if single else expected
    expected.backward(grad_y)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x_own.grad, x_ref.grad)
    torch.testing.assert_close(own, parameter_grads(layer))


@pytest.mark.parametrize("specs", SPECS)
@pytest.mark.parametrize("dims", PAIRS)
def test_conv(dims: int, specs: str) -> None:
    torch.manual_seed(0)
    weight, activation = SPECS[specs]
    plain_type, quant_type = PAIRS[dims]
    arguments = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2}
    layer = quant_type(4, 6, 3, **arguments, weight=weight, activation=activation)
    check_against_torch(layer, plain_type(4, 6, 3, **arguments), torch.randn(3, 4, *[7] * dims))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("kernel", "bias"), [((3, 3), True), ((2, 3), False)])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", "valid", 1, (0, 2)])
def test_every_padding(padding: object, mode: str, kernel: object, bias: bool) -> None:
    torch.manual_seed(0)
    arguments = {"padding": padding, "padding_mode": mode, "bias": bias, "dilation": 1 if padding != "same" else (1, 2)}
    layer = QuantConv2d(3, 4, kernel, **arguments, weight=QuantSpec(4), activation=QuantSpec(4))
    check_against_torch(layer, nn.Conv2d(3, 4, kernel, **arguments), torch.randn(2, 3, 8, 9))


def test_asymmetric_activations_pad_with_exact_zeros() -> None:
    layer = QuantConv2d(2, 2, 3, padding=1, weight=QuantSpec(8), activation=QuantSpec(8, "minmax", symmetric=False))
    check_against_torch(layer, nn.Conv2d(2, 2, 3, padding=1), torch.randn(2, 2, 5, 5) + 3)


@pytest.mark.parametrize("specs", SPECS)
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (7,)])
def test_linear(shape: tuple[int, ...], specs: str) -> None:
    torch.manual_seed(0)
    weight, activation = SPECS[specs]
    check_against_torch(QuantLinear(7, 4, weight=weight, activation=activation), nn.Linear(7, 4), torch.randn(*shape))


@pytest.mark.parametrize("dims", PAIRS)
def test_one_sample_without_batch_dimension(dims: int) -> None:
    plain_type, quant_type = PAIRS[dims]
    layer = quant_type(4, 6, 3, weight=QuantSpec(4), activation=QuantSpec(4, granularity="channel"))
    x = torch.randn(4, *[6] * dims)
    check_against_torch(layer, plain_type(4, 6, 3), x)
    torch.testing.assert_close(layer(x), layer(x.unsqueeze(0)).squeeze(0))


def test_channels_last_input() -> None:
    layer = QuantConv2d(4, 6, 3, weight=QuantSpec(4, granularity="channel"), activation=QuantSpec(4))
    check_against_torch(layer, nn.Conv2d(4, 6, 3), torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last))


def test_is_a_torch_layer_and_quantconv_is_2d() -> None:
    assert isinstance(QuantConv2d(1, 1, 1, weight=QuantSpec(4)), nn.Conv2d)
    assert isinstance(QuantLinear(1, 1, weight=QuantSpec(4)), nn.Linear)
    assert QuantConv is QuantConv2d


def test_weights_use_every_code_and_no_more() -> None:
    layer = QuantLinear(64, 64, weight=QuantSpec(2))
    nn.init.normal_(layer.weight)
    layer.weight_quantizer.initialise_from(layer.weight)
    w_hat = layer.weight_quantizer(layer.weight)
    assert torch.unique(torch.round(w_hat / layer.weight_quantizer.scale)).tolist() == [-2, -1, 0, 1]


def test_autocast_trains_in_bf16_with_fp32_master_weights() -> None:
    torch.manual_seed(0)
    layer = QuantConv2d(3, 4, 3, weight=QuantSpec(8), activation=QuantSpec(8))
    x = torch.randn(2, 3, 6, 6)
    calibrate(layer, [x])
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()
    y.float().square().mean().backward()
    for parameter in layer.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


def test_autocast_leaves_float64_alone() -> None:
    layer = QuantLinear(3, 4, weight=QuantSpec(4)).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_model_runs(dtype: torch.dtype) -> None:
    layer = QuantLinear(3, 4, weight=QuantSpec(4), activation=QuantSpec(4)).to(dtype)
    x = torch.randn(2, 3, dtype=dtype)
    calibrate(layer, [x])
    y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert layer.weight.grad.dtype == dtype and layer.weight_quantizer.scale.grad.dtype == torch.float32


def test_empty_batch() -> None:
    layer = QuantConv2d(3, 4, 3, weight=QuantSpec(4), activation=QuantSpec(4))
    calibrate(layer, [torch.randn(2, 3, 6, 6)])
    assert layer(torch.randn(0, 3, 6, 6)).shape == (0, 4, 4, 4)


def test_fake_quantize_module() -> None:
    module = FakeQuantize(QuantSpec(8, signed="auto", granularity="channel"), channels=3)
    x = torch.rand(4, 3, 5)
    calibrate(module, [x])
    assert not module.quantizer.signed and module.quantizer.scale.shape == (3,)
    y = module(x)
    assert y.shape == x.shape and (y - x).abs().max() < 0.05
    y.sum().backward()
    assert module.quantizer.scale.grad.shape == (3,)
    with pytest.raises(ValueError, match="channels="):
        FakeQuantize(QuantSpec(8, granularity="channel"))
