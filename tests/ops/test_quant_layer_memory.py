"""Memory of training with quantized layers against float: what the backward is left, and the allocator's peak, eager and compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastqat as fq
from bench.memory import held_bytes, peak_bytes
from fastqat.testing import eager_lsq_copy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]
LIMIT = 1.07


def convolutions() -> nn.Sequential:
    blocks = [[nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()] for a, b in ((3, 16), (16, 16), (16, 32), (32, 32))]
    return nn.Sequential(*(layer for block in blocks for layer in block), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def perceptron() -> nn.Sequential:
    sizes = [(96, 384), (384, 96), (96, 384), (384, 96)]
    return nn.Sequential(*(layer for a, b in sizes for layer in (nn.LayerNorm(a), nn.Linear(a, b), nn.GELU())), nn.Linear(96, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "convolutions": (convolutions, (8, 3, 24, 24)),
    "perceptron": (perceptron, (512, 96)),
}


def float_and_quantized(network: str, device: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The same network twice, every layer of the second quantized, and a batch that needs no gradient."""
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    plain, x = make().to(device), torch.randn(shape, device=device)
    return plain, fq.calibrate(fq.quantize(copy.deepcopy(plain), "w4a4:channel", skip=()), [x]).train(), x


def compiled(model: nn.Module, device: str) -> nn.Module:
    return torch.compile(model, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")  # type: ignore[return-value]


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the storages that a forward keeps for its backward; a compiled one keeps what its graph hands on."""
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = model(x)
    assert y.requires_grad
    return held_bytes(kept)


def step_peak(model: nn.Module, run: nn.Module, x: Tensor) -> int:
    """Peak of one training step: parameters, gradients, momentum and batch included."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        run(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    return peak_bytes(step, held_bytes([x, *model.parameters(), *model.buffers(), *momenta]), x.device.type)


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_step_needs_the_memory_of_a_float_step(device: str, network: str, how: str) -> None:
    plain, quantized, x = float_and_quantized(network, device)
    runs = [compiled(model, device) if how == "compiled" else model for model in (quantized, plain)]
    saved = [saved_bytes(run, x) for run in runs]
    peaks = [step_peak(model, run, x) for model, run in zip((quantized, plain), runs, strict=True)]
    for what, (ours, floats) in {"left for the backward": saved, "peak": peaks}.items():
        assert ours <= LIMIT * floats, f"{what}: {ours / floats:.3f} of float, {ours} against {floats} bytes"


def test_the_count_shows_what_eager_lsq_keeps() -> None:
    plain, _, x = float_and_quantized("convolutions", "cpu")
    eager = eager_lsq_copy(fq.calibrate(fq.quantize(plain, "w4a4", skip=()), [x]).train())
    assert saved_bytes(eager, x) > 1.5 * saved_bytes(plain, x)
    assert step_peak(eager, eager, x) > 1.5 * step_peak(plain, plain, x)
