"""PACT: what is clipped, which values move the clipping value, and its edges in every dtype."""

import pytest
import torch
from torch import nn

from fastqat import quantize_codes
from fastqat.quantizers import QuantSpec, make_quantizer


def made(bits: int = 4, signed: bool | str = False, alpha: float = 1.0, **fields: object) -> nn.Module:
    quantizer = make_quantizer(QuantSpec(bits, "pact", signed=signed, init="minmax", **fields), "activation", channels=3, axis=1)
    quantizer.initialise_from(torch.tensor([[-alpha if signed else 0.0, alpha, alpha]]))
    return quantizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 3.14159, 0.0123, 7.77e3])
def test_every_clipped_value_moves_alpha_and_no_other_does(dtype: torch.dtype, bits: int, signed: bool, alpha: float) -> None:
    quantizer = made(bits, signed, alpha)
    quantizer.alpha.data.fill_(alpha)
    edge = torch.tensor(alpha).bfloat16().double()
    inside = torch.tensor([0.0, 0.2, 0.5, 0.9]).double() * alpha
    x = torch.cat([inside, -inside[1:] if signed else inside[1:], torch.stack([edge, edge * 2]), -edge.view(1) * (2 if signed else 0)])
    x = x.to(dtype).requires_grad_()
    y = quantizer(x)
    grad_y = torch.arange(1, 11, dtype=dtype)
    y.backward(grad_y)
    assert quantizer.alpha.grad.item() == (8 + 9 - 10 if signed else 8 + 9)
    assert x.grad.tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 0, 0 if signed else 10]
    top = float(torch.finfo(dtype).eps) + 1e-6
    assert y[7] == y[8] and abs(y[7].item() - edge) <= top * alpha, "clipped values sit on the last code"


def test_codes_span_the_range_symmetrically() -> None:
    quantizer = made(3, True, 1.5)
    codes = torch.round(quantizer(torch.linspace(-4, 4, 161)) / quantizer.scale)
    assert codes.min() == -3 and codes.max() == 3


def test_special_values() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.4], requires_grad=True)
    y = made(2)(x)
    assert y[0].isnan() and y[1].item() == pytest.approx(1) and y[2] == 0
    y[1:].sum().backward()
    assert x.grad.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("role", ["weight", "activation"])
def test_first_alpha(role: str) -> None:
    x = torch.tensor([[-3.0, 1.0], [0.5, 2.0]])
    for signed, expected in ((True, 3.0), (False, 2.0)):
        quantizer = make_quantizer(QuantSpec(4, "pact", signed=signed, init="minmax"), role)
        quantizer.initialise_from(x)
        assert quantizer.alpha.item() == pytest.approx(expected)
        assert quantizer.scale.item() == pytest.approx(expected / quantizer.qrange()[1])


def test_decay_pulls_alpha_down_until_clipping_costs_as_much() -> None:
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(0)).relu()
    quantizer = made(alpha=20.0)
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.1, weight_decay=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (quantizer(x) - x).square().sum(1).mean().backward()
        optimizer.step()
    assert 1 < quantizer.alpha.item() < 4


def test_per_channel_alpha_clips_each_channel_at_its_own_value() -> None:
    quantizer = made(granularity="channel")
    quantizer.alpha.data.copy_(torch.tensor([1.0, 2.0, 4.0]))
    x = torch.full((2, 3, 5), 3.0, requires_grad=True)
    quantizer(x).sum().backward()
    assert quantizer.alpha.grad.tolist() == [10, 10, 0]
    assert (x.grad[:, 2] == 1).all() and (x.grad[:, :2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("signed", [False, True])
def test_what_is_trained_is_what_is_deployed(dtype: torch.dtype, signed: bool) -> None:
    quantizer = made(4, signed, 1.2345678)
    x = torch.linspace(-3, 3, 4001).to(dtype)
    qmin, qmax = quantizer.qrange()
    for mode in (True, False):
        codes = quantize_codes(x, quantizer.scale, qmin=qmin, qmax=qmax)
        assert torch.equal(quantizer.train(mode)(x), (codes.float() * quantizer.scale).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_alpha_is_summed_in_fp32(dtype: torch.dtype) -> None:
    quantizer = made()
    quantizer(torch.full((100001,), 2.0, dtype=dtype)).backward(torch.ones(100001, dtype=dtype))
    assert quantizer.alpha.grad.item() == 100001


def test_steps_below_the_rounding_of_alpha_add_up() -> None:
    quantizer = made()
    for _ in range(100):
        quantizer.alpha.data += 1e-4
        quantizer(torch.ones(2))
    assert quantizer.alpha.item() == pytest.approx(1.01, rel=1e-4) and quantizer.scale.item() * 15 == pytest.approx(1.0078125)
