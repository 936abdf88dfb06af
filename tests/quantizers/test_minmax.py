"""The min-max observer: ranges, zero points, moving average."""

import pytest
import torch

from fastqat.quantizers import SCALE_FLOOR, QuantSpec, make_quantizer
from fastqat.quantizers.minmax import MOMENTUM


def make(x: torch.Tensor, role: str = "weight", **fields: object) -> torch.nn.Module:
    quantizer = make_quantizer(QuantSpec(**{"bits": 8, "quantizer": "minmax", **fields}), role, channels=x.shape[0], axis=0)
    quantizer.initialise_from(x)
    return quantizer


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_no_value_is_clipped(x: torch.Tensor, symmetric: bool, granularity: str) -> None:
    quantizer = make(x, symmetric=symmetric, granularity=granularity)
    assert (quantizer(x) - x).abs().max() <= quantizer.scale.max() * 0.501 + (0 if symmetric else quantizer.scale.max() / 2)
    assert quantizer.scale.shape == ((1,) if granularity == "tensor" else (4,))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("offset", [-10.0, 0.0, 10.0])
def test_zero_point_is_an_integer_inside_the_range_and_zero_is_exact(x: torch.Tensor, signed: bool, offset: float) -> None:
    quantizer = make(x + offset, "activation", symmetric=False, signed=signed)
    qmin, qmax = quantizer.qrange()
    assert quantizer.zero_point.dtype == torch.int32
    assert qmin <= quantizer.zero_point.item() <= qmax
    assert quantizer(torch.zeros(2, 3)).abs().max() == 0


def test_weights_follow_the_current_values_in_training_only(x: torch.Tensor) -> None:
    quantizer = make(x)
    first = quantizer.scale.clone()
    quantizer(3 * x)
    torch.testing.assert_close(quantizer.scale, 3 * first)
    quantizer.eval()(x)
    torch.testing.assert_close(quantizer.scale, 3 * first)


def test_activations_follow_a_moving_average_in_training_only(x: torch.Tensor) -> None:
    quantizer = make(x, "activation")
    low, high = x.min(), x.max()
    quantizer(3 * x)
    torch.testing.assert_close(quantizer.low, (low + MOMENTUM * 2 * low).reshape(1))
    torch.testing.assert_close(quantizer.high, (high + MOMENTUM * 2 * high).reshape(1))
    frozen = quantizer.high.clone()
    quantizer.eval()(100 * x)
    assert torch.equal(quantizer.high, frozen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("role", ["weight", "activation"])
def test_a_bad_batch_does_not_spoil_the_range(x: torch.Tensor, role: str, bad: float) -> None:
    quantizer = make(x, role)
    before = quantizer.scale.clone()
    spoiled = x.clone()
    spoiled[0, 0] = bad
    quantizer(spoiled)
    torch.testing.assert_close(quantizer.scale, before)


def test_only_x_gets_a_gradient(x: torch.Tensor) -> None:
    quantizer = make(x)
    assert not list(quantizer.parameters())
    leaf = x.clone().requires_grad_()
    quantizer(leaf).sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(x))


def test_used_twice_in_one_forward(x: torch.Tensor) -> None:
    quantizer = make(x, "activation", symmetric=False)
    leaf = x.clone().requires_grad_()
    (quantizer(leaf) + quantizer(leaf / 2)).sum().backward()
    assert torch.isfinite(leaf.grad).all()


def test_zeros_and_empty(x: torch.Tensor) -> None:
    for symmetric in (True, False):
        quantizer = make(torch.zeros(4, 3), symmetric=symmetric)
        assert quantizer.scale.item() == pytest.approx(SCALE_FLOOR)
        assert quantizer(torch.zeros(4, 3)).abs().max() == 0
        assert quantizer(torch.zeros(0, 3)).shape == (0, 3)
