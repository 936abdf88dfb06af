"""Two processes (gloo) train as one process on the whole batch."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastqat.nn import calibrate, param_groups, quantize

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def model() -> nn.Module:
    torch.manual_seed(0)
    net = quantize(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), "w4a4:channel", skip=())
    calibrate(net, [X])
    with torch.no_grad():
        net[2].weight_quantizer.scale[1] = -1.0  # as a step of an optimizer may leave it
    return net


def train(net: nn.Module, parameters: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(param_groups(parameters, 0.01))
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = model()
    train(DistributedDataParallel(net), net, X[rank::2])
    torch.save(net.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = model()
    train(whole, whole, X)
    for name, value in whole.state_dict().items():
        assert torch.equal(one[name], two[name]), name
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-6)
    assert torch.isfinite(one["2.weight_quantizer.scale"]).all()
