"""A pass with norms leaves everything else as it is, on every backend, layout, dtype and batch size."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastqat as fq
from fastqat.testing import places

from .quantized_layers import ACTIVATIONS, WEIGHTS, Found, assert_equals_oracle, build, delivered, one_at_a_time, oracle

FAMILIES = [
    ("conv2d", "lsq channel", "lsq"),
    ("depthwise", "lsq+", "lsq+ channel"),
    ("tokens", "lsq group", "pact"),
    ("linear", "pact", "lsq"),
]
families = pytest.mark.parametrize(("kind", "weight", "activation"), FAMILIES)


@families
def test_the_usual_gradients_stay_what_they_are(kind: str, weight: str, activation: str) -> None:
    """Bit for bit; those of the activation's range are the sums over the samples, within the error of one summation."""
    layer, x = build(kind, WEIGHTS[weight], ACTIVATIONS[activation])
    x.requires_grad_()
    _, grad_y = delivered(layer, x)
    got = {name: p.grad for name, p in (*layer.named_parameters(), ("x", x))}
    layer.zero_grad()
    x.grad = None
    layer(x).backward(grad_y)
    for name, p in (*layer.named_parameters(), ("x", x)):
        if name.startswith("activation"):
            torch.testing.assert_close(got[name], p.grad, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(got[name], p.grad), name


@families
@pytest.mark.parametrize("names", ["weight", "bias", "weight_quantizer", "activation_quantizer"])
def test_only_what_counts(kind: str, weight: str, activation: str, names: str) -> None:
    """The norm of weight and bias alone, and the gradients of the quantizers' parameters one quantizer at a time."""
    layer, x = build(kind, WEIGHTS[weight], ACTIVATIONS[activation])
    layer.requires_grad_(False)
    counted = frozenset(name for name, _ in layer.named_parameters() if name.split(".")[0] == names)
    found, grad_y = delivered(layer, x, names=counted)
    everything, _ = delivered(layer, x, grad_y)
    assert set(found.grads) == counted - {"weight", "bias"}
    for name, grad in found.grads.items():
        torch.testing.assert_close(grad, everything.grads[name], rtol=1e-5, atol=1e-6)
    other = {"weight": "bias", "bias": "weight"}.get(names)
    if other is None:
        assert not found.sq_norm.any()
    else:
        rest, _ = delivered(layer, x, grad_y, frozenset([other]))
        torch.testing.assert_close(found.sq_norm + rest.sq_norm, everything.sq_norm)


@families
@pytest.mark.parametrize("samples", [0, 1])
def test_no_sample_and_one(kind: str, weight: str, activation: str, samples: int) -> None:
    layer, x = build(kind, WEIGHTS[weight], ACTIVATIONS[activation])
    found, grad_y = delivered(layer, x[:samples])
    if samples:
        assert_equals_oracle(found, layer, x[:1], grad_y)
    assert found.sq_norm.shape == (samples,)
    assert {name: grad.shape for name, grad in found.grads.items()} == {
        name: (samples, p.numel()) for name, p in layer.named_parameters() if "quantizer" in name
    }


@families
@pytest.mark.parametrize(("backend", "device"), places("fake_quant"))
def test_every_backend(kind: str, weight: str, activation: str, backend: str, device: str) -> None:
    layer, x = build(kind, WEIGHTS[weight], ACTIVATIONS[activation])
    layer.to(device)
    if backend not in fq.backends().rows or fq.backends()[backend].get("grad_norm") is not None:
        pytest.skip(f"{backend} has no grad_norm here")
    with fq.use_backend(backend):
        found, grad_y = delivered(layer, x.to(device))
    found.sq_norm, found.grads = found.sq_norm.cpu(), {name: grad.cpu() for name, grad in found.grads.items()}
    assert_equals_oracle(found, layer.cpu(), x, grad_y.cpu())


@pytest.mark.parametrize(("kind", "weight", "activation"), [f for f in FAMILIES if f[0] in ("conv2d", "depthwise")])
def test_channels_last(kind: str, weight: str, activation: str) -> None:
    layer, x = build(kind, WEIGHTS[weight], ACTIVATIONS[activation])
    layer.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    found, grad_y = delivered(layer, x)
    assert x.grad is not None and x.grad.is_contiguous(memory_format=torch.channels_last)
    assert_equals_oracle(found, layer, x.detach(), grad_y)


@families
def test_bf16_within_twice_the_error_of_its_own_gradient(kind: str, weight: str, activation: str) -> None:
    """Against fp64 on the same x and grad_y: at most twice as far as the gradients of plain passes of one sample each, in bf16 as well."""
    layer, x = build(kind, WEIGHTS[weight], ACTIVATIONS[activation])
    x = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found, grad_y = delivered(layer, x)
        own_norm, own_grads = one_at_a_time(copy.deepcopy(layer), x, grad_y)
    assert grad_y.dtype == torch.bfloat16
    sq_norm, grads = oracle(layer, x, grad_y)
    got = {"norm": found.sq_norm.double().sqrt(), **found.grads}
    own, want = {"norm": own_norm.sqrt(), **own_grads}, {"norm": sq_norm.sqrt(), **grads}
    for name, exact in want.items():
        error, of_torch = (float((each[name] - exact).norm() / exact.norm()) for each in (got, own))
        assert 1e-5 < of_torch < 2e-2, f"{name}: plain passes are {of_torch:.1e} off, which is not what bf16 does"
        assert error <= 2 * of_torch, f"{name}: {error:.1e} off, plain passes {of_torch:.1e}"


@families
def test_autocast_around_the_backward_pass_changes_nothing(kind: str, weight: str, activation: str) -> None:
    """What is widened to fp32 is multiplied in fp32."""
    layer, x = build(kind, WEIGHTS[weight], ACTIVATIONS[activation])
    with torch.autocast("cpu", torch.bfloat16):
        found, grad_y = delivered(layer, x.bfloat16())
    want = Found(layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    y.backward(grad_y)
    assert torch.equal(found.sq_norm, want.sq_norm) and all(torch.equal(found.grads[name], want.grads[name]) for name in want.grads)


def test_training_mode_of_an_observer() -> None:
    """The range moves once, as without norms, and nothing is learned of it."""
    layer, x = build("conv2d", WEIGHTS["minmax"], ACTIVATIONS["minmax"])
    twin = copy.deepcopy(layer.train()).train()
    found, grad_y = delivered(layer, x)
    twin(x).backward(grad_y)
    assert found.grads == {}
    assert torch.equal(layer.activation_quantizer.low, twin.activation_quantizer.low)


def test_no_gradient_no_norms() -> None:
    layer, x = build("linear", WEIGHTS["lsq"], ACTIVATIONS["lsq"])
    found = Found(layer)
    with torch.no_grad():
        assert not layer(x).requires_grad
    assert found.calls == 0


def test_shared_weight_quant_is_left_aside() -> None:
    layer, x = build("conv2d", WEIGHTS["lsq"], ACTIVATIONS["lsq"])
    model = fq.nn.share_weight_quant(nn.Sequential(layer))
    found = Found(layer)
    y = model(x)
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    layer.shares_weight_quant = False
    assert_equals_oracle(found, layer, x, grad_y)


def test_copies_and_pickles_know_nothing_of_a_collection() -> None:
    layer, _ = build("linear", WEIGHTS["lsq"], ACTIVATIONS["lsq"])
    Found(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.sample_norms is None
    assert not any("norm" in name for name in layer.state_dict())


def test_two_runs_and_any_number_of_threads_give_the_same_bits() -> None:
    layer, x = build("conv2d", WEIGHTS["lsq channel"], ACTIVATIONS["lsq channel"])
    first, grad_y = delivered(layer, x)
    threads = torch.get_num_threads()
    for count in (threads, 1):
        torch.set_num_threads(count)
        try:
            again, _ = delivered(layer, x, grad_y)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(first.sq_norm, again.sq_norm)
        assert all(torch.equal(first.grads[name], again.grads[name]) for name in first.grads)
