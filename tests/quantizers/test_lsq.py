"""LSQ: first scale, gradient factor, and the floor under the scale."""

import math

import pytest
import torch

from fastqat.quantizers import SCALE_FLOOR, QuantSpec, make_quantizer


def weight_quantizer(x: torch.Tensor, **fields: object) -> torch.nn.Module:
    quantizer = make_quantizer(QuantSpec(**{"bits": 4, **fields}), "weight", channels=x.shape[0], axis=0)
    quantizer.initialise_from(x)
    return quantizer


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0))


def test_first_scale_is_that_of_the_paper(x: torch.Tensor) -> None:
    torch.testing.assert_close(weight_quantizer(x).scale.detach(), (2 * x.abs().mean() / math.sqrt(7)).reshape(1))
    per_channel = weight_quantizer(x, granularity="channel")
    torch.testing.assert_close(per_channel.scale.detach(), 2 * x.abs().mean((1, 2)) / math.sqrt(7))


def test_minmax_init_covers_the_range(x: torch.Tensor) -> None:
    for granularity in ("tensor", "channel"):
        quantizer = weight_quantizer(x, bits=8, init="minmax", granularity=granularity)
        assert (quantizer(x) - x).abs().max() <= quantizer.scale.max() / 2 * (1 + 1e-6)


def test_all_zero_channel_gets_the_floor_and_stays_finite(x: torch.Tensor) -> None:
    x[2] = 0
    quantizer = weight_quantizer(x, granularity="channel")
    assert quantizer.scale[2] == SCALE_FLOOR
    leaf = x.clone().requires_grad_()
    y = quantizer(leaf)
    assert (y[2] == 0).all()
    y.sum().backward()
    assert torch.isfinite(leaf.grad).all() and torch.isfinite(quantizer.scale.grad).all()


def test_a_scale_pushed_below_zero_is_put_on_the_floor(x: torch.Tensor) -> None:
    quantizer = weight_quantizer(x)
    with torch.no_grad():
        quantizer.scale.fill_(-3.0)
    y = quantizer(x)
    assert quantizer.scale.item() == SCALE_FLOOR
    assert torch.isfinite(y).all()
    y.sum().backward()
    assert torch.isfinite(quantizer.scale.grad).all()


def test_no_projection_without_training(x: torch.Tensor) -> None:
    quantizer = weight_quantizer(x)
    with torch.no_grad():
        quantizer.scale.fill_(-3.0)
    for mode in (True, False):
        quantizer.train(mode)
        with torch.no_grad():
            assert torch.isfinite(quantizer(x)).all()
        assert quantizer.scale.item() == -3.0
    assert quantizer.state_dict()["scale"].item() == SCALE_FLOOR, "a checkpoint never holds a bad scale"


def test_used_twice_in_one_forward(x: torch.Tensor) -> None:
    quantizer = weight_quantizer(x)
    (quantizer(x) + quantizer(2 * x)).sum().backward()
    assert torch.isfinite(quantizer.scale.grad).all()


def test_learning_finds_a_scale_near_the_best_one() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    quantizer = weight_quantizer(x, grad_factor="none")
    grid = (x.view(1, -1) / (scales := torch.linspace(0.05, 2, 400).view(-1, 1))).round().clamp(-8, 7) * scales
    best = (grid - x).square().mean(1).min().item()
    with torch.no_grad():
        quantizer.scale.mul_(3)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        error = (quantizer(x) - x).square().mean()
        error.backward()
        optimizer.step()
    assert error.item() < 1.05 * best


def test_stays_fp32_in_a_half_model(x: torch.Tensor) -> None:
    quantizer = weight_quantizer(x)
    before = quantizer.scale.detach().clone()
    quantizer.half().bfloat16().double()
    assert quantizer.scale.dtype == torch.float32
    torch.testing.assert_close(quantizer.scale.detach(), before, rtol=0, atol=0)
    assert quantizer(x.bfloat16()).dtype == torch.bfloat16
