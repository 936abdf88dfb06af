"""LSQ+: an integer zero point inside the range, and an offset that learns."""

import pytest
import torch
from torch import Tensor, nn

from fastqat import fake_quantize, quantize_codes
from fastqat.quantizers import QuantSpec, make_quantizer


def made(x: Tensor, **fields: object) -> nn.Module:
    spec = QuantSpec(**{"bits": 4, "quantizer": "lsq_plus", "symmetric": False, "signed": False, **fields})
    quantizer = make_quantizer(spec, "activation", channels=x.shape[1], axis=1)
    quantizer.initialise_from(x)
    return quantizer


@pytest.fixture
def x() -> Tensor:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return x * x.sigmoid()  # swish: the activation that the paper is about, bounded below near −0.28


def test_first_range_covers_what_was_seen(x: Tensor) -> None:
    for granularity in ("tensor", "channel"):
        quantizer = made(x, bits=8, granularity=granularity)
        assert (quantizer(x) - x).abs().max() <= quantizer.scale.max() * (1 + 1e-5)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("offset", [-100.0, -0.3, 0.0, 0.3, 100.0])
def test_zero_is_exact_wherever_the_offset_is_driven(x: Tensor, signed: bool, offset: float) -> None:
    quantizer = made(x, signed=signed)
    qmin, qmax = quantizer.qrange()
    with torch.no_grad():
        quantizer.offset.fill_(offset)
    for mode in (True, False):
        quantizer.train(mode)
        zero_point = quantizer.zero_point
        assert zero_point.dtype == torch.int32 and qmin <= zero_point.item() <= qmax
        assert quantizer(torch.zeros(2, 6)).abs().max() == 0


@pytest.mark.parametrize("offset", [-0.31, 0.0, 0.17, 5.0])
def test_what_is_trained_is_what_is_deployed(x: Tensor, offset: float) -> None:
    quantizer = made(x, signed=True)
    with torch.no_grad():
        quantizer.offset.fill_(offset)
    y = quantizer(x)
    scale, zero_point = quantizer.scale.detach(), quantizer.zero_point
    codes = quantize_codes(x, scale, zero_point, qmin=-8, qmax=7)
    torch.testing.assert_close(y, (codes.float() - zero_point) * scale, rtol=0, atol=0)
    torch.testing.assert_close(y, fake_quantize(x, scale, zero_point, qmin=-8, qmax=7), rtol=0, atol=0)


def test_at_a_whole_zero_point_it_is_the_formula_of_the_paper(x: Tensor) -> None:
    quantizer = made(x)
    with torch.no_grad():
        quantizer.scale.fill_(0.25)
        quantizer.offset.fill_(-0.75)
    paper = ((x + 0.75) / 0.25).round().clamp(0, 15) * 0.25 - 0.75
    torch.testing.assert_close(quantizer(x).detach(), paper)


def test_a_symmetric_one_has_no_offset(x: Tensor) -> None:
    quantizer = made(x, symmetric=True, signed=True)
    assert quantizer.zero_point is None and [name for name, _ in quantizer.named_parameters()] == ["scale"]


def test_learning_moves_the_range_to_where_the_values_are() -> None:
    x = torch.rand(512, 4, generator=torch.Generator().manual_seed(0)) - 0.25
    quantizer = made(x, grad_factor="none")
    best = (quantizer(x) - x).square().mean().item()
    with torch.no_grad():
        quantizer.offset.fill_(0.0)  # everything below zero is clipped
    worst = (quantizer(x) - x).square().mean().item()
    optimizer = torch.optim.Adam(quantizer.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        error = (quantizer(x) - x).square().mean()
        error.backward()
        optimizer.step()
    assert worst > 5 * best and error.item() < 1.3 * best


def test_a_symmetric_checkpoint_lacks_the_offset(x: Tensor) -> None:
    state = made(x, symmetric=True).state_dict()
    with pytest.raises(RuntimeError, match="Missing key.*offset"):
        made(x).load_state_dict(state)


def test_the_init_of_lsq_is_for_symmetric_codes(x: Tensor) -> None:
    own, lsq = (made(x, symmetric=True, init="lsq", quantizer=name) for name in ("lsq_plus", "lsq"))
    assert torch.equal(own.scale, lsq.scale)
    with pytest.raises(ValueError, match="init 'lsq' finds no zero point"):
        QuantSpec(4, "lsq_plus", symmetric=False, init="lsq")
