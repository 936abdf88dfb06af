"""Rules of PReLU and of users' scales against single-sample autograd in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastqat as fq
from fastqat.norms import ScaleRule, register_rule
from fastqat.testing import places

from .rule_checks import check_half, check_rule, random_parameters, rule_of

PLACES = [place for place in places("affine_grad_norm") if place == ("reference", "cpu") or place[0] == "cpu"]


class Scale(nn.Module):
    """gamma · x + beta, either of them or both."""

    def __init__(self, gamma: tuple[int, ...] | None, beta: tuple[int, ...] | None = None):
        super().__init__()
        self.gamma = None if gamma is None else nn.Parameter(torch.randn(gamma))
        self.beta = None if beta is None else nn.Parameter(torch.randn(beta))

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone() if self.gamma is None else x * self.gamma
        return y if self.beta is None else y + self.beta


class TokenScale(Scale):
    """The same along the last dimension."""


@register_rule(Scale)
class PictureScaleRule(ScaleRule):
    weight, bias, axis = "gamma", "beta", 1


@register_rule(TokenScale)
class TokenScaleRule(ScaleRule):
    weight, bias, axis = "gamma", "beta", -1


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("parameters", [1, 6])
@pytest.mark.parametrize("shape", [(3, 6), (2, 6, 5), (2, 6, 4, 3), (1, 6, 2, 3, 2)])
def test_prelu(backend: str, device: str, shape: tuple[int, ...], parameters: int) -> None:
    x = torch.randn(shape)
    x.view(-1)[0] = 0
    with fq.use_backend(backend):
        check_rule(random_parameters(nn.PReLU(parameters)), x)


def test_prelu_of_other_layouts() -> None:
    x = torch.randn(3, 6, 4, 5)
    for layer in (nn.PReLU(6), nn.PReLU()):
        check_rule(layer, x.contiguous(memory_format=torch.channels_last))
        check_rule(layer, x[:, :, ::2])
        check_half(layer, x, torch.bfloat16)
    check_rule(nn.PReLU(), torch.randn(4))


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize(
    ("gamma", "beta"), [((6, 1, 1), None), ((6, 1, 1), (6, 1, 1)), ((), None), ((1,), (6, 1, 1)), ((6, 1, 1), ()), (None, (6, 1, 1))]
)
def test_scale_of_pictures(backend: str, device: str, gamma, beta) -> None:
    x = torch.randn(3, 6, 4, 5)
    with fq.use_backend(backend):
        check_rule(Scale(gamma, beta), x)
        check_rule(Scale(gamma, beta), x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(("gamma", "beta"), [((6,), None), ((6,), (6,)), ((), (6,)), (None, (6,))])
def test_scale_of_tokens(gamma, beta) -> None:
    for x in (torch.randn(3, 5, 6), torch.randn(3, 6), torch.randn(2, 3, 5, 6)):
        check_rule(TokenScale(gamma, beta), x)


def test_scale_of_other_lengths_is_refused() -> None:
    layer, x = TokenScale((6,)), torch.randn(2, 5, 6)
    with pytest.raises(fq.InputError, match=r"gamma has 6 elements and x is \[2, 6, 5\].*dimension -1"):
        rule_of(layer).sq_norm(layer, x.mT, x.mT, frozenset({"gamma"}))


def test_scale_in_a_network() -> None:
    model = nn.Sequential(nn.Linear(5, 6), TokenScale((6,)))
    with fq.per_sample_grad_norms(model, loss_reduction="sum", per_layer=True) as norms:
        model(torch.randn(4, 3, 5)).square().sum().backward()
    assert set(norms.layers) == {"0", "1"}
