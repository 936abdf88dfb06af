"""torch.compile on quantized models: whole graphs, one graph for every batch size, the numbers of eager mode."""

import copy

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from fastqat._bench.case import needs_compiler
from fastqat.nn import FakeQuantize, QConfig, calibrate, quantize
from fastqat.quantizers import SCALE_FLOOR, QuantSpec


def model(spec: QuantSpec, activation: QuantSpec) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU(), FakeQuantize(activation), nn.Flatten(), nn.Linear(64, 5))
    return calibrate(quantize(net, QConfig(spec, activation), skip=()), [torch.randn(8, 4, 4, 4)])


def train(net: nn.Module, parameters: list[nn.Parameter]) -> list[float]:
    """Three SGD steps on three batch sizes, the batch dimension marked dynamic."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(parameters, 0.05)
    losses = []
    for size in (8, 6, 5):
        x = torch.randn(size, 4, 4, 4, generator=generator)
        torch._dynamo.mark_dynamic(x, 0)
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


CASES = {
    "lsq": (QuantSpec(4, granularity="channel"), QuantSpec(4, signed="auto")),
    "lsq per scale": (QuantSpec(4, grad_factor="range"), QuantSpec(4, grad_factor="per_scale")),
    "lsq per group": (QuantSpec(4, granularity=("group", 4), init="mse"), QuantSpec(4, signed="auto", init="mse")),
    "lsq_plus": (
        QuantSpec(4, "lsq_plus", granularity=("group", 4), symmetric=False),
        QuantSpec(4, "lsq_plus", symmetric=False, grad_factor="per_scale"),
    ),
    "pact": (QuantSpec(4, "pact", granularity="channel"), QuantSpec(4, "pact", signed="auto", init="mse", grad_factor="per_scale")),
    "dorefa": (QuantSpec(4, "dorefa"), QuantSpec(4, "dorefa", signed="auto")),
    "minmax": (QuantSpec(8, "minmax", granularity=("group", 2)), QuantSpec(8, "minmax", symmetric=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_one_graph_for_every_batch_size(case: str) -> None:
    torch._dynamo.reset()
    eager = model(*CASES[case])
    compiled = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    losses = train(torch.compile(compiled, backend=counter, fullgraph=True), list(compiled.parameters()))
    assert counter.frame_count == 1
    assert losses == pytest.approx(train(eager, list(eager.parameters())), rel=1e-5)
    own, expected = compiled.state_dict(), eager.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", ["lsq", "lsq_plus", "pact"])
def test_the_floor_is_kept_when_compiled(case: str) -> None:
    torch._dynamo.reset()
    net = model(*CASES[case])
    with torch.no_grad():
        for parameter in net[0].weight_quantizer.parameters():
            parameter.fill_(-1.0)
    loss = torch.compile(net, backend="aot_eager", fullgraph=True)(torch.randn(2, 4, 4, 4)).square().mean()
    scale = net[0].weight_quantizer.scale.detach()
    torch.testing.assert_close(scale, torch.full_like(scale, SCALE_FLOOR), rtol=1e-6, atol=0)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.skipif(needs_compiler() is not None, reason=str(needs_compiler()))
def test_inductor_trains_under_autocast() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = calibrate(quantize(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), "w4a4", skip=()), [torch.randn(16, 8)])
    compiled = torch.compile(net, fullgraph=True)
    x = torch.randn(16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = compiled(x), net(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_an_exported_program_holds_the_quantized_layers(case: str, training: bool) -> None:
    net = model(*CASES[case]).train(training)
    with torch.no_grad():
        for parameter in net[0].weight_quantizer.parameters():
            parameter[0] = -1.0  # as a step of an optimizer may leave it
    x = torch.randn(2, 4, 4, 4)
    program = torch.export.export(copy.deepcopy(net), (x,))
    assert "fastqat.quant_layer" in program.graph_module.code
    torch.testing.assert_close(program.module()(x), net(x))
