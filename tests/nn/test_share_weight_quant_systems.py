"""share_weight_quant under torch.compile, torch.export and DistributedDataParallel."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastqat.nn import quantize, share_weight_quant
from fastqat.testing import assert_same_bits

from .test_nn_ddp import leave
from .test_share_weight_quant import X, model, quantized_layers, step


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    net = model("minmax, zero point")
    shared = share_weight_quant(copy.deepcopy(net))
    compiled = torch.compile(shared, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        want = step(net)
        compiled.zero_grad()
        y = compiled(X)
        y.square().sum().backward()
        torch.testing.assert_close(y, want[0], rtol=1e-4, atol=1e-5)
        for name, p in shared.named_parameters():
            if want[1][name] is not None:
                torch.testing.assert_close(p.grad, want[1][name], rtol=1e-3, atol=1e-4)
    assert all(layer.w_hat is None for layer in quantized_layers(shared))


def test_inductor() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = quantize(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), "w4a32:channel", skip=())
    shared = share_weight_quant(copy.deepcopy(net))
    x = torch.randn(5, 6)
    got, want = step(torch.compile(shared, fullgraph=True), x), step(net, x)
    torch.testing.assert_close(got[0], want[0])
    for got_grad, want_grad in zip(got[1].values(), want[1].values(), strict=True):
        torch.testing.assert_close(got_grad, want_grad)


def test_compiled_part_of_an_eager_model() -> None:
    torch._dynamo.reset()
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))
    block = torch.compile(shared.block, backend="aot_eager", fullgraph=True)
    shared.run = lambda part, x: block(x)
    got, want = step(shared), step(net)
    torch.testing.assert_close(got[0], want[0])
    for name, grad in want[1].items():
        torch.testing.assert_close(got[1][name], grad)


def test_export() -> None:
    net = share_weight_quant(model("weights only")).eval()
    program = torch.export.export(net, (X,))
    torch.testing.assert_close(program.module()(X), net(X))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for used in (False, True):
        net = share_weight_quant(model())
        if used:
            net.unused = None
        wrapped = DistributedDataParallel(net, find_unused_parameters=not used)
        for _ in range(2):
            net.zero_grad()
            wrapped(X[3 * rank : 3 * rank + 3]).square().sum().backward()
        results[used] = {name: p.grad for name, p in net.named_parameters()}
    torch.save(results, f"{folder}/{rank}.pt")
    leave(rank, Path(folder))


def test_distributed(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    net = model()
    (net(X[:3]).square().sum() / 2 + net(X[3:]).square().sum() / 2).backward()
    parameters = dict(net.named_parameters())
    assert one[False].keys() == parameters.keys()
    for used in (False, True):
        for name, got in one[used].items():
            if parameters[name].grad is None:
                assert got is two[used][name] is None, name
                continue
            assert_same_bits(got, two[used][name], name)
            torch.testing.assert_close(got, parameters[name].grad, rtol=1e-4, atol=1e-5)
