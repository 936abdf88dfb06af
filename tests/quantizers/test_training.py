"""Every registered quantizer trains a small network on real data."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastqat.nn import QConfig, calibrate, param_groups, quantize
from fastqat.quantizers import QuantSpec, list_quantizers

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


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", list_quantizers())
def test_reaches_95_percent_with_4_bits(digits: Data, float_model: nn.Module, name: str, granularity: str) -> None:
    weight = QuantSpec(4, name, granularity=granularity)
    model = quantize(copy.deepcopy(float_model), QConfig(weight, QuantSpec(4, name, signed="auto")))
    calibrate(model, digits[0].split(64), max_batches=4)
    assert fit(model, digits, epochs=3, lr=1e-3) >= 95


def test_lsq_reaches_93_percent_with_2_bit_weights(digits: Data, float_model: nn.Module) -> None:
    assert fit(quantize(float_model, "w2a32"), digits, epochs=4, lr=2e-3) >= 93
