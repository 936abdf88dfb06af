"""DoReFa: the fixed grid, the tanh of weights, and gradients straight through."""

import pytest
import torch
from torch import Tensor, nn

from fastqat.quantizers import SCALE_FLOOR, QuantSpec, make_quantizer


def weight(w: Tensor, bits: int = 3, init: str = "paper") -> nn.Module:
    quantizer = make_quantizer(QuantSpec(bits, "dorefa", init=init), "weight")
    quantizer.initialise_from(w)
    return quantizer


@pytest.fixture
def w() -> Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(0)) * 0.3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("init", ["paper", "minmax"])
def test_weights_are_the_nearest_levels_of_their_normalised_tanh(w: Tensor, bits: int, init: str) -> None:
    quantizer = weight(w, bits, init)
    qmax, top = 2 ** (bits - 1) - 1, 1.0 if init == "paper" else w.abs().max()
    t = torch.tanh(w) / torch.tanh(w).abs().max()
    torch.testing.assert_close(quantizer(w), torch.round(t * qmax) / qmax * top, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weight_gradient_is_that_of_the_normalised_tanh(w: Tensor, dtype: torch.dtype) -> None:
    w = w.to(dtype)
    own, plain = w.clone().requires_grad_(), w.double().requires_grad_()
    grad_y = torch.randn(w.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight(w)(own).backward(grad_y.to(dtype))
    (torch.tanh(plain) / torch.tanh(plain).abs().max()).backward(grad_y)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-6, torch.float16: 5e-2, torch.bfloat16: 0.4}[dtype]
    below_top = w.abs() < w.abs().max()  # in half precision the largest weight may land a rounding outside and then gets no gradient
    torch.testing.assert_close(own.grad.double()[below_top], plain.grad[below_top], rtol=tolerance, atol=tolerance)
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(own.grad.double(), plain.grad, rtol=tolerance, atol=tolerance)


def test_paper_activations_are_clipped_to_one() -> None:
    quantizer = make_quantizer(QuantSpec(2, "dorefa", signed="auto"))
    quantizer.initialise_from(torch.tensor([0.0, 9.0]))
    x = torch.tensor([-0.5, 0.1, 0.4, 0.9, 1.5], requires_grad=True)
    y = quantizer(x)
    torch.testing.assert_close(y.detach(), torch.tensor([0.0, 0.0, 1 / 3, 1.0, 1.0]))
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_the_other_init_covers_what_was_seen() -> None:
    quantizer = make_quantizer(QuantSpec(8, "dorefa", signed="auto", init="minmax"))
    quantizer.initialise_from(torch.tensor([0.0, 9.0]))
    assert quantizer(torch.tensor(9.0)).item() == pytest.approx(9)


def test_nothing_is_learned_and_the_scale_is_kept(w: Tensor) -> None:
    quantizer = weight(w)
    assert not list(quantizer.parameters()) and "scale" in quantizer.state_dict()


@pytest.mark.parametrize("init", ["paper", "minmax"])
def test_all_zero_weights(init: str) -> None:
    zeros = torch.zeros(3, 4, requires_grad=True)
    quantizer = weight(zeros, init=init)
    y = quantizer(zeros)
    y.sum().backward()
    assert (y == 0).all() and torch.isfinite(zeros.grad).all() and quantizer.scale.item() >= SCALE_FLOOR


@pytest.mark.parametrize("start", [0.0, 1e-30])
@pytest.mark.parametrize("init", ["paper", "minmax"])
def test_a_step_from_zero_weights_stays_small(init: str, start: float) -> None:
    w = torch.full((3, 4), start, requires_grad=True)
    quantizer = weight(w, init=init)
    quantizer(w).sum().backward()
    torch.optim.SGD([w], 1.0).step()
    assert w.abs().max() < 10
    quantizer.initialise_from(w)
    assert torch.isfinite(quantizer(w)).all()
