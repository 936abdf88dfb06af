"""Quantized layers against torch's own layer run on the fake-quantized operands."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastqat.nn import FakeQuantize, QuantConv, QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear, calibrate, share_weight_quant
from fastqat.quantizers import QuantSpec

from ..quantizers.variants import finest_specs, weight_specs

PAIRS = {1: (nn.Conv1d, QuantConv1d), 2: (nn.Conv2d, QuantConv2d), 3: (nn.Conv3d, QuantConv3d)}
SPECS = {
    "w4a4": (QuantSpec(4), QuantSpec(4, signed="auto")),
    "w2a32": (QuantSpec(2), None),
    "w32a8": (None, QuantSpec(8)),
    "float": (None, None),
    "channel": (QuantSpec(4, granularity="channel"), QuantSpec(6, granularity="channel")),
    "minmax": (QuantSpec(8, "minmax"), QuantSpec(8, "minmax", symmetric=False)),
    "group": (QuantSpec(4, granularity=("group", 2)), QuantSpec(4)),
    "lsq_plus": (QuantSpec(4, "lsq_plus", granularity=("group", 4), symmetric=False), QuantSpec(4, "lsq_plus", symmetric=False)),
    "pact": (QuantSpec(4, "pact", granularity=("group", 4)), QuantSpec(3, "pact", granularity="channel", init="mse")),
    "pact per_scale": (QuantSpec(4, "pact", grad_factor="per_scale"), QuantSpec(3, "pact", grad_factor="per_scale", init="mse")),
    "dorefa": (QuantSpec(4, "dorefa"), QuantSpec(4, "dorefa")),
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
    layer = quant_type(8, 6, 3, **arguments, weight=weight, activation=activation)
    check_against_torch(layer, plain_type(8, 6, 3, **arguments), torch.randn(3, 8, *[7] * dims))


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
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (8,)])
def test_linear(shape: tuple[int, ...], specs: str) -> None:
    torch.manual_seed(0)
    weight, activation = SPECS[specs]
    check_against_torch(QuantLinear(8, 4, weight=weight, activation=activation), nn.Linear(8, 4), torch.randn(*shape))


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


def in_precision(label: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    weight = weight_specs(bits=8)[label]
    activation = QuantSpec(8, weight.quantizer, signed="auto", symmetric=weight.symmetric)
    return QuantConv2d(4, 4, 3, weight=weight, activation=activation), torch.rand(2, 4, 6, 6)


@pytest.mark.parametrize("label", weight_specs())
def test_every_quantizer_under_autocast(label: str) -> None:
    layer, x = in_precision(label)
    calibrate(layer, [x])
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and (y.float() - exact).abs().max() < 0.05 * exact.abs().max()
    y.float().square().mean().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("label", finest_specs())
def test_every_quantizer_in_a_cast_module(label: str, dtype: torch.dtype) -> None:
    layer, x = in_precision(label)
    exact = calibrate(layer, [x])(x)
    layer, x = layer.to(dtype), x.to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype and (y.float() - exact).abs().max() < 0.05 * exact.abs().max()
    y.float().square().mean().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == dtype
    for name, parameter in layer.named_parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.dtype == (torch.float32 if "quantizer" in name else dtype), "ranges stay fp32"


@pytest.mark.parametrize("label", weight_specs())
def test_every_quantizer_with_shared_weights_keeps_its_bits(label: str) -> None:
    layer, x = in_precision(label)
    models = [nn.Sequential(calibrate(layer, [x])), share_weight_quant(nn.Sequential(copy.deepcopy(layer)))]
    outputs = [model(x) for model in models]
    for y in outputs:
        y.square().sum().backward()
    assert torch.equal(*outputs)
    for own, shared in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(own.grad, shared.grad)


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


@pytest.mark.parametrize("label", finest_specs())
def test_empty_batch(label: str) -> None:
    layer, x = in_precision(label)
    y = calibrate(layer, [x])(x[:0])
    assert y.shape == (0, 4, 4, 4)
    y.sum().backward()
    assert all((p.grad == 0).all() for p in layer.parameters())


def test_fake_quantize_module() -> None:
    module = FakeQuantize(QuantSpec(8, signed="auto", granularity="channel"), channels=3)
    x = torch.rand(4, 3, 5)
    calibrate(module, [x])
    assert not module.quantizer.signed and module.quantizer.scale.shape == (3,)
    y = module(x)
    assert y.shape == x.shape and (y - x).abs().max() < 0.05
    y.sum().backward()
    assert module.quantizer.scale.grad.shape == (3,)
    with pytest.raises(ValueError, match="accepted for weights only"):
        FakeQuantize(QuantSpec(8, granularity=("group", 4)), channels=8)
    with pytest.raises(ValueError, match="channels="):
        FakeQuantize(QuantSpec(8, granularity="channel"))
