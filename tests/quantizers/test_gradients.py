"""Gradients of learned ranges against the written formulas, for every granularity, role and gradient factor; the floor under them."""

import math

import pytest
import torch
from torch import Tensor, nn

from fastqat.quantizers import SCALE_FLOOR, QuantSpec, make_quantizer

from .variants import LEARNED, activation_specs, weight_specs

SPECS = {("weight", label): spec for label, spec in weight_specs(LEARNED, bits=3).items()}
SPECS |= {("activation", label): spec for label, spec in activation_specs(bits=3).items() if spec.quantizer in LEARNED}
RULES = ("paper", "per_scale", "range", "none")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(0)) + 0.3


@pytest.fixture
def grad_y(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def made(spec: QuantSpec, role: str, x: Tensor, **fields: object) -> nn.Module:
    """A quantizer whose range clips some values on both sides."""
    quantizer = make_quantizer(QuantSpec(**{**vars(spec), **fields}), role, channels=8, axis=1, shape=x.shape if role == "weight" else None)
    quantizer.initialise_from(x * 0.5)
    return quantizer


def grads(quantizer: nn.Module, x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    quantizer.zero_grad()
    leaf = x.clone().requires_grad_()
    quantizer(leaf).backward(grad_y)
    return {"x": leaf.grad} | {name: p.grad for name, p in quantizer.named_parameters()}


def expected(quantizer: nn.Module, x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    """The formulas of the docstrings, before the gradient factor, in fp64 on what shares a scale."""
    layout, (qmin, qmax) = quantizer.layout, quantizer.qrange()
    values, g = layout.rows(x).double(), layout.rows(grad_y).double()
    s = quantizer.scale.detach().double().reshape(-1, 1)
    if quantizer.spec.quantizer == "pact":
        alpha = quantizer.alpha.detach().bfloat16().double().reshape(-1, 1)
        above, below = values >= alpha, values <= (-alpha if quantizer.signed else 0)
        total = (g * above).sum(1) - (g * below).sum(1) * quantizer.signed
        return {"alpha": total, "x": ~(above | below)}
    zero = torch.zeros_like(s)
    beta = zero if getattr(quantizer, "offset", None) is None else quantizer.offset.detach().double().reshape(-1, 1)
    raw = -beta / s
    z = raw.round()
    v = values / s
    below, above = v < qmin - z, v > qmax - z
    slope = torch.where(below, qmin - z + raw, torch.where(above, qmax - z + raw, v.round() - v))
    found = {"scale": (g * slope).sum(1), "x": ~(above | below)}
    return found if beta is zero else found | {"offset": (g * (below | above)).sum(1)}


@pytest.mark.parametrize(("role", "label"), SPECS)
def test_formulas(role: str, label: str, x: Tensor, grad_y: Tensor) -> None:
    quantizer = made(SPECS[role, label], role, x, grad_factor="none")
    own, want = grads(quantizer, x, grad_y), expected(quantizer, x, grad_y)
    inside = want.pop("x")
    assert own.keys() == want.keys() | {"x"}
    assert not inside.all(), "the case clips something"
    torch.testing.assert_close(quantizer.layout.rows(own.pop("x")), quantizer.layout.rows(grad_y) * inside, rtol=0, atol=0)
    for name, value in want.items():
        torch.testing.assert_close(own[name].flatten().double(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("role", "label"), SPECS)
def test_factors(role: str, label: str, rule: str, x: Tensor, grad_y: Tensor) -> None:
    spec = SPECS[role, label]
    quantizer = made(spec, role, x, grad_factor=rule)
    qmin, qmax = quantizer.qrange()
    elements = {"weight": x.numel(), "activation": x[0].numel()}[role]
    sharing = {"tensor": x.numel(), "channel": x.numel() // quantizer.scale.numel()}.get(spec.granularity, spec.group_size)
    factor = {
        "paper": 1.0 if spec.quantizer == "pact" else 1 / math.sqrt(elements * qmax),
        "range": 1 / math.sqrt(elements * (qmax - qmin)),
        "per_scale": 1 / math.sqrt(sharing * qmax),
        "none": 1.0,
    }[rule]
    own, plain = grads(quantizer, x, grad_y), grads(made(spec, role, x, grad_factor="none"), x, grad_y)
    assert torch.equal(own.pop("x"), plain.pop("x"))
    for name, value in plain.items():
        torch.testing.assert_close(own[name], value * factor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, -3.0, -1e30])
@pytest.mark.parametrize(("role", "label"), SPECS)
def test_a_range_pushed_through_zero_stays_finite(role: str, label: str, value: float, x: Tensor) -> None:
    quantizer = made(SPECS[role, label], role, x)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.fill_(value)
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        y = quantizer(x.clone().requires_grad_())
        assert torch.isfinite(y).all() and (quantizer.scale >= SCALE_FLOOR).all()
        y.square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())
        optimizer.step()


@pytest.mark.parametrize(("role", "label"), SPECS)
def test_only_training_moves_a_bad_range_and_no_checkpoint_holds_one(role: str, label: str, x: Tensor) -> None:
    quantizer = made(SPECS[role, label], role, x)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.fill_(-3.0)
    for mode in (True, False):
        quantizer.train(mode)
        with torch.no_grad():
            assert torch.isfinite(quantizer(x)).all()
        assert all((p == -3.0).all() for p in quantizer.parameters())
    before = quantizer.eval()(x).detach()
    assert (quantizer.state_dict()[quantizer.state_key] >= SCALE_FLOOR).all()
    assert torch.equal(quantizer(x), before), "saving changes no value"


@pytest.mark.parametrize(("role", "label"), SPECS)
def test_training_and_evaluation_quantize_alike(role: str, label: str, x: Tensor) -> None:
    quantizer = made(SPECS[role, label], role, x)
    assert torch.equal(quantizer.train()(x), quantizer.eval()(x))
