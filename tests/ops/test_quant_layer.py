"""quant_conv and quant_linear: equal to fake_quantize plus torch's own layer, and only x and w are saved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import fastqat as fq
from fastqat.ops.quant_layer import op
from fastqat.ops.quant_layer.api import QuantArgs, quant_conv, quant_linear
from fastqat.testing import places

everywhere = pytest.mark.parametrize(("backend", "device"), places("fake_quant"))
on_each_device = pytest.mark.parametrize("device", sorted({device for _, device in places("fake_quant")}))


@pytest.fixture(autouse=True)
def fp32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways to the same product are compared at fp32's precision, which TF32 does not have."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def leaf(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) * scale).to(device, dtype).requires_grad_()


def quantizers(channels: int, device: str = "cpu") -> tuple[QuantArgs, QuantArgs, list[Tensor]]:
    tensors = [
        torch.tensor([0.11], device=device, requires_grad=True),
        torch.tensor([2.0], device=device, requires_grad=True),
        torch.full((channels,), 0.2, device=device, requires_grad=True),
    ]
    x_quant = QuantArgs(tensors[0], tensors[1], 0, 15, grad_factor=0.5)
    return x_quant, QuantArgs(tensors[2], None, -8, 7, axis=0, semantics="reciprocal", per_scale=True), tensors


def by_hand(x: Tensor, weight: Tensor, x_quant: QuantArgs, w_quant: QuantArgs) -> tuple[Tensor, Tensor]:
    x_hat = fq.fake_quantize(x, x_quant.scale, x_quant.zero_point, qmin=0, qmax=15, grad_factor=0.5)
    share = (weight.numel() // weight.shape[0]) ** -0.5
    return x_hat, fq.fake_quantize(weight, w_quant.scale, qmin=-8, qmax=7, axis=0, semantics="reciprocal", grad_factor=share)


CONVOLUTIONS = [
    (1, {"stride": [1], "padding": [2], "dilation": [2], "groups": 1}),
    (2, {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2], "groups": 2}),
    (2, {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 6}),
    (3, {"stride": [1, 2, 1], "padding": [0, 1, 1], "dilation": [1, 1, 1], "groups": 3}),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dims", "options"), CONVOLUTIONS)
@everywhere
def test_conv_equals_fake_quantize_and_convolution(backend: str, device: str, dims: int, options: dict, bias: bool) -> None:
    x, weight = leaf(3, 6, *[7] * dims, device=device), leaf(12, 6 // options["groups"], *[3] * dims, device=device)
    b = leaf(12, device=device) if bias else None
    x_quant, w_quant, scales = quantizers(12, device)
    inputs = [x, weight, *scales, *([b] if bias else [])]
    with fq.use_backend(backend):
        y = quant_conv(x, weight, b, **options, x_quant=x_quant, w_quant=w_quant)
        grad = torch.randn_like(y)
        got = torch.autograd.grad(y, inputs, grad)
        convolution = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        want_y = convolution(*by_hand(x, weight, x_quant, w_quant), b, **options)
        want = torch.autograd.grad(want_y, inputs, grad)
    torch.testing.assert_close(y, want_y, rtol=1e-6, atol=1e-6)
    for a, e in zip(got, want, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 10), (2, 3, 10), (10,), (0, 10)])
@on_each_device
def test_linear_equals_fake_quantize_and_linear(device: str, shape: tuple[int, ...]) -> None:
    x, weight, bias = leaf(*shape, device=device), leaf(8, 10, device=device), leaf(8, device=device)
    x_quant, w_quant, scales = quantizers(8, device)
    y = quant_linear(x, weight, bias, x_quant=x_quant, w_quant=w_quant)
    grad = torch.randn_like(y)
    want_y = F.linear(*by_hand(x, weight, x_quant, w_quant), bias)
    torch.testing.assert_close(y, want_y)
    inputs = [x, weight, bias, *scales]
    for a, e in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(want_y, inputs, grad), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@on_each_device
def test_unbatched_convolution_and_no_quantizers(device: str) -> None:
    x, weight = leaf(6, 7, 7, device=device), leaf(4, 6, 3, 3, device=device)
    options = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    torch.testing.assert_close(quant_conv(x, weight, **options), F.conv2d(x, weight, padding=1))
    per_channel = QuantArgs(torch.full((6,), 0.1, device=device), None, -8, 7, axis=0)
    want = F.conv2d(fq.fake_quantize(x, per_channel.scale, qmin=-8, qmax=7, axis=0), weight, padding=1)
    torch.testing.assert_close(quant_conv(x, weight, **options, x_quant=per_channel), want)


@on_each_device
def test_channels_last_goes_through_without_a_copy(device: str) -> None:
    x = leaf(2, 8, 6, 6, device=device).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = leaf(16, 8, 3, 3, device=device).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    x_quant, w_quant, _ = quantizers(16, device)
    y = quant_conv(x, weight, stride=[1, 1], padding=[1, 1], dilation=[1, 1], x_quant=x_quant, w_quant=w_quant)
    y.backward(torch.randn_like(y))
    for t in (y, x.grad, weight.grad):
        assert t.is_contiguous(memory_format=torch.channels_last)


@on_each_device
def test_bf16_activations_with_fp32_weights(device: str) -> None:
    x, weight, bias = leaf(4, 10, dtype=torch.bfloat16, device=device), leaf(8, 10, device=device), leaf(8, device=device)
    x_quant, w_quant, scales = quantizers(8, device)
    y = quant_linear(x, weight, bias, x_quant=x_quant, w_quant=w_quant)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    assert all(s.grad.dtype == torch.float32 and s.grad.isfinite().all() for s in scales)
    x_hat, w_hat = by_hand(x, weight, x_quant, w_quant)
    torch.testing.assert_close(y, F.linear(x_hat, w_hat.bfloat16(), bias.bfloat16()))


class Stack(nn.Module):
    """Six quantized convolutions and ReLUs."""

    def __init__(self, quantized: bool):
        super().__init__()
        self.quantized = quantized
        self.weights = nn.ParameterList([leaf(8, 8, 3, 3, scale=0.1) for _ in range(6)])
        self.scale, self.w_scale = nn.Parameter(torch.tensor([0.1])), nn.Parameter(torch.tensor([0.1]))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x_quant, w_quant = QuantArgs(self.scale, None, -8, 7), QuantArgs(self.w_scale, None, -8, 7)
            if self.quantized:
                x = quant_conv(x, weight, stride=[1, 1], padding=[1, 1], dilation=[1, 1], x_quant=x_quant, w_quant=w_quant).relu()
            else:
                x = F.conv2d(x, weight, padding=1).relu()
        return x


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of all distinct storages that a forward pass keeps for its backward."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    assert y.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("compiled", [False, True])
@on_each_device
def test_saves_what_a_float_layer_saves(device: str, compiled: bool) -> None:
    x = leaf(4, 8, 32, 32, device=device)
    float_model, quant_model = Stack(False).to(device), Stack(True).to(device)
    if compiled:
        float_model, quant_model = (torch.compile(m, backend="aot_eager", fullgraph=True) for m in (float_model, quant_model))
    assert saved_bytes(quant_model, x) <= 1.01 * saved_bytes(float_model, x) + 4096


@on_each_device
def test_opcheck(device: str) -> None:
    x, weight = leaf(2, 6, 7, 7, device=device).detach(), leaf(4, 3, 3, 3, device=device).detach()
    scale = torch.tensor([0.1], device=device)
    conv, code = [2, 1, 1, 1, 1, 1, 1], [-8, 7, -1, 0, 0]
    for layout in (x, x.contiguous(memory_format=torch.channels_last), x[:0]):
        quantizers = (scale, None, scale, None, code, code, conv)
        torch.library.opcheck(op.quant_layer, (layout, weight, None, *quantizers))
        y = op.quant_layer(layout, weight, None, *quantizers)
        needs = [True, True, True, True, False, True, False]
        torch.library.opcheck(op.quant_layer_backward, (torch.randn_like(y), layout, weight, *quantizers, [1.0, 1.0], [False, True], needs))


@on_each_device
def test_compiles_whole_and_keeps_its_graph_for_a_new_batch_size(device: str) -> None:
    model = Stack(True).to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for n in (2, 3, 5):
        x = leaf(n, 8, 9, 9, device=device).detach()
        torch._dynamo.mark_dynamic(x, 0)
        (got,) = torch.autograd.grad(compiled(x).square().sum(), model.scale)
        (want,) = torch.autograd.grad(model(x).square().sum(), model.scale)
        torch.testing.assert_close(got, want)
    assert counter.frame_count == 1


def test_double_backward_is_refused() -> None:
    x, weight = leaf(2, 3), leaf(4, 3)
    y = quant_linear(x * 2, weight, w_quant=QuantArgs(torch.tensor(0.1), None, -8, 7))
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.sum().backward()


def test_bad_quantizer_is_named() -> None:
    with pytest.raises(ValueError, match=r"scale has shape \[3\]; accepted: shape \[4\]"):
        quant_linear(torch.ones(2, 3), torch.ones(4, 3), w_quant=QuantArgs(torch.ones(3), None, -8, 7, axis=0))
