"""Initialisations by name, against their formulas and against an exhaustive search."""

import math

import pytest
import torch
from torch import Tensor

from fastqat import fake_quantize
from fastqat.nn import FakeQuantize, calibrate
from fastqat.quantizers import QuantSpec, make_quantizer
from fastqat.quantizers.ranges import SYMMETRIC_INITS
from fastqat.quantizers.registry import quantizer_class

from .variants import LEARNED, weight_specs

SPECS = weight_specs(LEARNED)


@pytest.fixture
def x() -> Tensor:
    """A few values far outside, so that clipping pays."""
    x = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 5
    return x


def weight(spec: QuantSpec, x: Tensor, init: str, **fields: object) -> torch.nn.Module:
    spec = QuantSpec(**{**vars(spec), "init": init, **fields})
    quantizer = make_quantizer(spec, "weight", shape=x.shape)
    quantizer.initialise_from(x)
    return quantizer


def inits_of(spec: QuantSpec) -> list[str]:
    return [init for init in quantizer_class(spec.quantizer).inits if spec.symmetric or init not in SYMMETRIC_INITS]


def rows(quantizer: torch.nn.Module, x: Tensor) -> Tensor:
    return quantizer.layout.rows(x)


@pytest.mark.parametrize("label", SPECS)
def test_every_init_that_a_quantizer_knows(label: str, x: Tensor) -> None:
    spec = SPECS[label]
    for init in inits_of(spec):
        quantizer = weight(spec, x, init)
        assert quantizer.scale.shape == quantizer.size
        assert (quantizer.scale > 0).all() and torch.isfinite(quantizer(x)).all()


@pytest.mark.parametrize("granularity", ["tensor", "channel", ("group", 4)])
def test_formulas(granularity: str, x: Tensor) -> None:
    spec = QuantSpec(4, granularity=granularity)
    values = rows(weight(spec, x, "lsq"), x)
    std, mean = values.std(1, correction=0), values.mean(1)
    expected = {
        "lsq": 2 * values.abs().mean(1) / math.sqrt(7),
        "minmax": torch.maximum(values.amin(1) / -8, values.amax(1) / 7),
        "sigma": torch.maximum((mean - 3 * std) / -8, (mean + 3 * std) / 7),
    }
    for init, scale in expected.items():
        torch.testing.assert_close(weight(spec, x, init).scale.detach().flatten(), scale)


def squared_error(quantizer: torch.nn.Module, x: Tensor) -> Tensor:
    return rows(quantizer, (quantizer(x) - x).detach()).square().sum(1)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("label", [label for label in SPECS if "asymmetric" not in label])
def test_mse_finds_what_an_exhaustive_search_finds(label: str, bits: int, x: Tensor) -> None:
    spec = SPECS[label]
    quantizer = weight(spec, x, "mse", bits=bits)
    values = rows(quantizer, x)
    cover = weight(spec, x, "minmax", bits=bits).scale.detach().flatten()
    qmin, qmax, *_ = quantizer.code_range()
    errors = torch.stack(
        [
            (fake_quantize(values, cover * ratio, qmin=qmin, qmax=qmax, axis=0) - values).square().sum(1)
            for ratio in torch.linspace(0.02, 1, 400).tolist()
        ]
    )
    own, best = squared_error(quantizer, x), errors.amin(0)
    slack = 1.01 if bits < 8 else 1.1 if spec.quantizer == "pact" else 1.06  # α has 8 significant bits itself
    assert own.sum() <= slack * best.sum(), "of the jagged errors at 8 bits a search over 63 steps misses some dips"
    if bits < 8:
        assert (own <= (1.01 if spec.group_size is None else 1.1) * best + 1e-9).all(), "and so for the four values of a group"


def test_mse_with_a_zero_point_is_no_worse_than_covering_and_pays_at_low_bits(x: Tensor) -> None:
    spec = QuantSpec(3, "lsq_plus", symmetric=False, granularity="channel")
    searched, covering = (squared_error(weight(spec, x.abs() + 1, init), x.abs() + 1) for init in ("mse", "minmax"))
    assert (searched <= covering * (1 + 1e-5)).all() and searched.sum() < 0.9 * covering.sum()


def test_mse_is_deterministic_and_knows_the_semantics(x: Tensor) -> None:
    for semantics in ("div", "reciprocal"):
        spec = QuantSpec(3, granularity="channel", init="mse", semantics=semantics)
        one, two = (weight(spec, x, "mse").scale.detach() for _ in range(2))
        assert torch.equal(one, two)


def test_mse_of_activations_comes_from_a_sample_of_the_stream() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 3, 40, 40, generator=generator).relu() for _ in range(3)]
    exact = make_quantizer(QuantSpec(3, signed=False, init="mse"), "weight", shape=(1, 1))
    exact.initialise_from(torch.cat(batches))
    for spec in (QuantSpec(3, signed="auto", init="mse"), QuantSpec(3, signed="auto", init="mse", granularity="channel")):
        modules = [FakeQuantize(spec, channels=3) for _ in range(2)]
        for module in modules:
            calibrate(module, batches)
        assert torch.equal(modules[0].quantizer.scale, modules[1].quantizer.scale)
        torch.testing.assert_close(modules[0].quantizer.scale.detach().mean(), exact.scale.detach()[0], rtol=0.06, atol=0)


@pytest.mark.parametrize("label", SPECS)
def test_all_zero_and_constant_values(label: str) -> None:
    for init in inits_of(SPECS[label]):
        for x in (torch.zeros(4, 8), torch.full((4, 8), 0.5), torch.full((4, 8), -0.5)):
            quantizer = weight(SPECS[label], x, init)
            y = quantizer(x.requires_grad_())
            assert torch.isfinite(y).all()
            y.sum().backward()
            assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())
