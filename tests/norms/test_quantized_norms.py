"""Per-sample norms inside the backward pass of quantized layers, against passes of one sample at a time in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastqat as fq
from fastqat.norms.rules import find_rule
from fastqat.testing import pairwise

from .quantized_layers import ACTIVATIONS, LAYERS, SAMPLES, WEIGHTS, Found, assert_equals_oracle, build, delivered, share

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
