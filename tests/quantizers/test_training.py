"""Every registered quantizer trains a small network on real data."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastqat.nn import QConfig, calibrate, param_groups, quantize
from fastqat.quantizers import QuantSpec, list_quantizers

from .variants import weight_specs

Data = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small only lose time to a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> Data:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order].view(-1, 1, 8, 8) / 16, torch.tensor(y)[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def fit(model: nn.Module, data: Data, epochs: int, lr: float) -> float:
    """Train with Adam; return the test accuracy in percent."""
    x, y, x_test, y_test = data
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(param_groups(model, lr))
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    with torch.no_grad():
        return (model.eval()(x_test).argmax(1) == y_test).float().mean().item() * 100


@pytest.fixture(scope="module")
def float_model(digits: Data) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    )
    assert fit(model, digits, epochs=6, lr=5e-3) > 95
    return model


WITH_4_BITS = {"lsq": 95, "lsq_plus": 95, "pact": 95, "dorefa": 93, "minmax": 95}
"""Percent right after three epochs at W4A4, in every granularity, from each quantizer's default range."""

WITH_2_BITS = {
    ("lsq", "lsq"): 93,
    ("lsq", "mse"): 95,
    ("lsq_plus", "mse"): 92,
    ("pact", "mse"): 92,
    ("dorefa", "minmax"): 88,
    ("minmax", "minmax"): 86,
}
"""Percent right after four epochs at W2A2, per tensor, by quantizer and first range."""


def trained(model: nn.Module, weight: QuantSpec, data: Data, epochs: int, lr: float) -> float:
    """Test accuracy in percent of a copy with such weights, its activations alike but per tensor."""
    activation = QuantSpec(weight.bits, weight.quantizer, signed="auto", symmetric=weight.symmetric, init=weight.init)
    model = quantize(copy.deepcopy(model), QConfig(weight, activation))
    calibrate(model, data[0].split(64), max_batches=4)
    return fit(model, data, epochs, lr)


@pytest.mark.parametrize("label", weight_specs())
def test_accuracy_with_4_bits(digits: Data, float_model: nn.Module, label: str) -> None:
    spec = weight_specs()[label]
    assert trained(float_model, spec, digits, epochs=3, lr=1e-3) >= WITH_4_BITS[spec.quantizer]


@pytest.mark.parametrize(("name", "init"), WITH_2_BITS)
def test_accuracy_with_2_bits(digits: Data, float_model: nn.Module, name: str, init: str) -> None:
    assert trained(float_model, QuantSpec(2, name, init=init), digits, epochs=4, lr=2e-3) >= WITH_2_BITS[name, init]


def test_every_quantizer_has_its_row() -> None:
    assert WITH_4_BITS.keys() == {name for name, _ in WITH_2_BITS} == set(list_quantizers())


def test_lsq_reaches_93_percent_with_2_bit_weights(digits: Data, float_model: nn.Module) -> None:
    assert fit(quantize(float_model, "w2a32"), digits, epochs=4, lr=2e-3) >= 93
