"""Per-sample norms inside the backward pass of quantized layers, against passes of one sample at a time in fp64."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastqat as fq
from fastqat.nn.layer import QuantLayer
from fastqat.norms.rules import find_rule
from fastqat.ops.quant_layer.norms import SampleNorms
from fastqat.quantizers import Quantizer
from fastqat.testing import pairwise, places

Specs = dict[str, Any]
SAMPLES = 4

LAYERS: dict[str, tuple[type[QuantLayer], dict[str, Any], tuple[int, ...]]] = {
    "conv1d": (fq.nn.QuantConv1d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}, (4, 9)),
    "conv2d": (fq.nn.QuantConv2d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": (1, 0)}, (4, 7, 8)),
    "conv3d": (fq.nn.QuantConv3d, {"in_channels": 2, "out_channels": 3, "kernel_size": (1, 2, 3), "dilation": (1, 2, 1)}, (2, 3, 5, 6)),
    "pointwise": (fq.nn.QuantConv2d, {"in_channels": 6, "out_channels": 4, "kernel_size": 1}, (6, 3, 5)),
    "grouped": (fq.nn.QuantConv2d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "padding": "same"}, (4, 6, 5)),
    "depthwise": (fq.nn.QuantConv2d, {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6, "padding": 1}, (6, 6, 5)),
    "reflected": (
        fq.nn.QuantConv2d,
        {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
        (2, 5, 6),
    ),
    "linear": (fq.nn.QuantLinear, {"in_features": 8, "out_features": 5}, (8,)),
    "tokens": (fq.nn.QuantLinear, {"in_features": 8, "out_features": 5}, (2, 3, 8)),
}
WEIGHTS: dict[str, Specs | None] = {
    "float": None,
    "lsq": {"bits": 4},
    "lsq channel": {"bits": 3, "granularity": "channel", "semantics": "reciprocal"},
    "lsq group": {"bits": 2, "granularity": ("group", 0), "grad_factor": "per_scale"},
    "lsq+": {"bits": 4, "quantizer": "lsq_plus", "symmetric": False, "granularity": "channel"},
    "lsq+ group": {"bits": 5, "quantizer": "lsq_plus", "symmetric": False, "signed": False, "granularity": ("group", 0)},
    "minmax": {"bits": 8, "quantizer": "minmax", "granularity": "channel"},
    "dorefa": {"bits": 2, "quantizer": "dorefa"},
    "pact": {"bits": 4, "quantizer": "pact", "granularity": "channel"},
    "pact group": {"bits": 3, "quantizer": "pact", "granularity": ("group", 0), "grad_factor": "per_scale"},
}
ACTIVATIONS: dict[str, Specs | None] = {
    "float": None,
    "lsq": {"bits": 4, "signed": "auto"},
    "lsq unsigned": {"bits": 2, "signed": False, "grad_factor": "per_scale"},
    "lsq channel": {"bits": 6, "granularity": "channel", "semantics": "reciprocal"},
    "lsq+": {"bits": 4, "quantizer": "lsq_plus", "symmetric": False, "signed": False},
    "lsq+ channel": {"bits": 3, "quantizer": "lsq_plus", "symmetric": False, "granularity": "channel"},
    "minmax": {"bits": 8, "quantizer": "minmax", "symmetric": False},
    "pact": {"bits": 4, "quantizer": "pact", "signed": False},
    "pact channel": {"bits": 3, "quantizer": "pact", "granularity": "channel", "grad_factor": "per_scale"},
}


def build(kind: str, weight: Specs | None, activation: Specs | None, bias: bool = True) -> tuple[QuantLayer, Tensor]:
    """A calibrated layer in eval mode, its values clipped here and there, and an input."""
    cls, options, shape = LAYERS[kind]
    torch.manual_seed(0)
    inputs = cls(**options).weight.shape[1]
    if weight is not None and weight.get("granularity") == ("group", 0):
        weight = {**weight, "granularity": ("group", 2 if inputs % 2 == 0 else 1)}
    specs = {"weight": weight and fq.QuantSpec(**weight), "activation": activation and fq.QuantSpec(**activation)}
    layer = cls(**options, bias=bias, **specs)
    x = torch.randn(SAMPLES, *shape) + 0.3
    fq.calibrate(layer, [x])
    with torch.no_grad():
        for name, values in layer.state_dict(keep_vars=True).items():
            if name.endswith(("scale", "alpha", "offset")):
                values.mul_(0.7)  # clips, and not where rounding decides about the largest value
    return layer.eval(), x


class Found:
    """What a layer delivered."""

    def __init__(self, layer: QuantLayer, names: frozenset[str] | None = None):
        names = frozenset(name for name, _ in layer.named_parameters()) if names is None else names
        self.calls = 0
        layer.sample_norms = SampleNorms(names, torch.empty(0, requires_grad=True), self._deliver)

    def _deliver(self, sq_norm: Tensor, grads: dict[str, Tensor]) -> None:
        self.sq_norm, self.grads = sq_norm, grads
        self.calls += 1


def oracle(layer: QuantLayer, x: Tensor, grad_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared norms and gradients of the quantizers' parameters, one sample at a time, in fp64."""
    layer = copy.deepcopy(layer).double().requires_grad_()
    norms, grads = [], []
    with fq.use_backend("reference"):
        for n in range(len(x)):
            layer.zero_grad()
            layer(x[n : n + 1].double().requires_grad_()).backward(grad_y[n : n + 1].double())
            found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in layer.named_parameters()}
            norms.append(sum(found.pop(name).square().sum() for name in ("weight", "bias") if name in found))
            grads.append({name: grad.flatten().double() * share(layer, name, len(x)) for name, grad in found.items()})
    return torch.stack(norms), {name: torch.stack([grad[name] for grad in grads]) for name in grads[0]}


def share(layer: QuantLayer, name: str, samples: int) -> float:
    """ "per_scale" counts the elements of the whole batch."""
    quantizer = layer.get_submodule(name.rpartition(".")[0])
    assert isinstance(quantizer, Quantizer)
    batched = quantizer.role == "activation" and quantizer.spec.grad_factor == "per_scale"
    return 1 / math.sqrt(samples) if batched else 1.0


def assert_equals_oracle(found: Found, layer: QuantLayer, x: Tensor, grad_y: Tensor, rtol: float = 1e-5) -> None:
    sq_norm, grads = oracle(layer, x, grad_y)
    assert found.calls == 1
    torch.testing.assert_close(found.sq_norm.double(), sq_norm, rtol=rtol, atol=0)
    assert set(found.grads) == set(grads)
    for name, want in grads.items():
        got = found.grads[name]
        assert got.dtype == torch.float32 and not got.requires_grad
        torch.testing.assert_close(
            got.double(), want, rtol=rtol, atol=rtol * float(want.abs().max()), msg=lambda m, name=name: f"{name}: {m}"
        )


CASES = pairwise(kind=list(LAYERS), weight=list(WEIGHTS), activation=list(ACTIVATIONS), bias=[True, False], scoring=[True, False])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_against_one_sample_at_a_time(case: dict[str, Any]) -> None:
    layer, x = build(case["kind"], WEIGHTS[case["weight"]], ACTIVATIONS[case["activation"]], case["bias"])
    layer.requires_grad_(not case["scoring"])
    found = Found(layer)
    y = layer(x)
    assert y.requires_grad
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    assert_equals_oracle(found, layer, x, grad_y)
    assert case["scoring"] == all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("most", [-1, 4])
@pytest.mark.parametrize("equal", [1, 2, 3])
@pytest.mark.parametrize("weight", ["dorefa", "pact", "pact group"])
def test_transformed_weights_by_pivots_and_formed(monkeypatch: pytest.MonkeyPatch, weight: str, equal: int, most: int) -> None:
    """DoReFa divides all weights by the largest: alone or one of several equals, of either sign; with too many, gradients are formed."""
    monkeypatch.setattr("fastqat.quantizers.weight_gradients.MOST_PIVOTS", most)
    layer, x = build("conv2d", WEIGHTS[weight], ACTIVATIONS["lsq"])
    with torch.no_grad():
        layer.weight.view(-1)[[0, 17, 30][:equal]] = torch.tensor([1.5, -1.5, 1.5][:equal])
    found, grad_y = delivered(layer, x)
    assert_equals_oracle(found, layer, x, grad_y)


def delivered(layer: QuantLayer, x: Tensor, grad_y: Tensor | None = None, names: frozenset[str] | None = None) -> tuple[Found, Tensor]:
    """What one pass with norms delivers, and the gradient that it started from."""
    found = Found(layer, names)
    y = layer(x)
    grad_y = torch.randn_like(y) if grad_y is None else grad_y
    y.backward(grad_y)
    layer.sample_norms = None
    return found, grad_y


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
    """x and grad_y in bf16, sums in fp32: as far from fp64 as rounding the operands once."""
    layer, x = build(kind, WEIGHTS[weight], ACTIVATIONS[activation])
    with torch.autocast("cpu", torch.bfloat16):
        found, grad_y = delivered(layer, x.bfloat16())
    assert grad_y.dtype == torch.bfloat16
    assert_equals_oracle(found, layer, x.bfloat16().float(), grad_y.float(), rtol=2e-2)


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


@pytest.mark.parametrize("activation", [name for name, spec in ACTIVATIONS.items() if spec is not None])
def test_fake_quantize_by_its_rule(activation: str) -> None:
    spec = fq.QuantSpec(**ACTIVATIONS[activation])
    channels = {"channels": 3} if spec.granularity == "channel" else {}
    module = fq.nn.FakeQuantize(spec, **channels)
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 3, 5, 4)
    fq.calibrate(module, [x * 0.6])
    quantizer = module.eval().quantizer
    rule = find_rule(quantizer)
    assert rule is not None and rule.refuses(quantizer) is None
    names = frozenset(name for name, _ in quantizer.named_parameters())
    grad_y = torch.randn_like(x)
    before = grad_y.clone()
    with torch.no_grad():
        grads = rule.grads(quantizer, x, grad_y, names)
    assert torch.equal(grad_y, before) and set(grads) == names
    for n in range(SAMPLES):
        quantizer.zero_grad()
        quantizer(x[n : n + 1].requires_grad_()).backward(grad_y[n : n + 1])
        for name, parameter in quantizer.named_parameters():
            want = parameter.grad * share(module, f"quantizer.{name}", SAMPLES)
            torch.testing.assert_close(grads[name][n], want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


class Shared(fq.quantizers.LSQ):
    """Scales with a factor in common: a quantizer that nothing here knows of."""

    def __init__(self, *args: Any, entries: int = 1):
        super().__init__(*args)
        self.stretch = nn.Parameter(torch.full((entries,), 0.1))

    def current(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.scale * self.stretch.sum().exp(), None


@pytest.mark.parametrize("role", ["weight", "activation"])
def test_any_quantizer_is_followed_to_its_parameters(role: str) -> None:
    layer, x = build("conv2d", WEIGHTS["lsq channel"], ACTIVATIONS["lsq channel"])
    name = f"{role}_quantizer"
    known = getattr(layer, name)
    shared = Shared(known.spec, known.role, known.layout)
    shared.load_state_dict({**shared.state_dict(), **known.state_dict()})
    setattr(layer, name, shared)
    found, grad_y = delivered(layer, x)
    assert f"{name}.stretch" in found.grads
    assert_equals_oracle(found, layer, x, grad_y)


def test_a_parameter_that_belongs_to_some_scales_is_refused() -> None:
    layer, x = build("conv2d", WEIGHTS["lsq channel"], ACTIVATIONS["lsq"])
    known = layer.weight_quantizer
    layer.weight_quantizer = Shared(known.spec, known.role, known.layout, entries=2)
    layer.weight_quantizer.calibrated = True
    Found(layer)
    with pytest.raises(fq.InputError, match=r"stretch \[2\] beside 6 scales"):
        layer(x)


def test_a_weight_quantizer_by_itself_is_refused() -> None:
    quantizer = fq.quantizers.make_quantizer(fq.QuantSpec(4), "weight")
    rule = find_rule(quantizer)
    assert rule is not None and "no batch dimension" in str(rule.refuses(quantizer))
