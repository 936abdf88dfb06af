"""Two processes (gloo): learned scales train as in one process on the whole batch; observed ranges follow process 0."""

import copy
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastqat.nn import QConfig, calibrate, param_groups, quantize
from fastqat.quantizers import QuantSpec

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


LEARNED = {
    "lsq": QConfig.parse("w4a4:channel"),
    "lsq per group": QConfig.parse("w4a4:group2"),
    "lsq_plus": QConfig(QuantSpec(4, "lsq_plus", granularity="channel", symmetric=False), QuantSpec(4, "lsq_plus", symmetric=False)),
    "pact": QConfig(QuantSpec(4, "pact", granularity="channel"), QuantSpec(4, "pact", signed="auto", init="mse")),
    "dorefa": QConfig(QuantSpec(4, "dorefa"), QuantSpec(4, "dorefa", signed="auto")),
}


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = quantize(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), LEARNED[name], skip=())
    calibrate(net, [X])
    with torch.no_grad():
        for parameter in net[2].weight_quantizer.parameters():
            parameter[1] = -1.0  # as a step of an optimizer may leave it
    return net


def observing_model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    return calibrate(quantize(layers, QConfig(QuantSpec(4, "minmax"), QuantSpec(4, "minmax", symmetric=False)), skip=()), [X])


def train(net: nn.Module, parameters: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(param_groups(parameters, 0.01))
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    learned = {name: model(name) for name in LEARNED}
    for net in learned.values():
        train(DistributedDataParallel(net), net, X[rank::2])
    torch.save({name: net.state_dict() for name, net in learned.items()}, f"{folder}/{rank}.pt")
    observing = observing_model()
    wrapped = DistributedDataParallel(observing)
    states = []
    for x in ((1 + 5 * rank) * X, X):
        wrapped(x).square().mean().backward()
        states.append(copy.deepcopy(observing.state_dict()))
    torch.save(states, f"{folder}/observed_{rank}.pt")
    leave(rank, Path(folder))


def leave(rank: int, folder: Path) -> None:
    """Ends the process once both have saved, past the interpreter's teardown: gloo's threads may outlive the group and abort in it."""
    (folder / f"done_{rank}").touch()
    until = time.monotonic() + 120
    while not (folder / f"done_{1 - rank}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds what both processes saved."""
    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", LEARNED)
def test_two_processes_equal_one(folder: Path, name: str) -> None:
    one, two = (torch.load(folder / f"{rank}.pt", weights_only=True)[name] for rank in range(2))
    whole = model(name)
    train(whole, whole, X)
    for key, value in whole.state_dict().items():
        assert torch.equal(one[key], two[key]), key
        torch.testing.assert_close(one[key], value, rtol=1e-4, atol=1e-6)
        assert torch.isfinite(value).all()


def test_observed_ranges_move_apart_for_one_step_and_follow_process_0(folder: Path) -> None:
    own, other = (torch.load(folder / f"observed_{rank}.pt", weights_only=True) for rank in range(2))
    assert other[0]["0.activation_quantizer.high"] > own[0]["0.activation_quantizer.high"]
    for name, value in own[1].items():
        assert torch.equal(value, other[1][name]), f"{name}: both saw the same batch last, from the range of process 0"
    assert torch.equal(own[0]["0.weight_quantizer.scale"], other[0]["0.weight_quantizer.scale"])
    alone = observing_model()
    for x in (X, X):
        alone(x)
    assert torch.equal(alone[0].activation_quantizer.high, own[1]["0.activation_quantizer.high"])
