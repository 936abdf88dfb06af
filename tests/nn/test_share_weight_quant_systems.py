"""share_weight_quant under torch.compile, torch.export, torch.func and DistributedDataParallel, and after an interrupt."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastqat._bench.case import needs_compiler
from fastqat.nn import quantize, share_weight_quant
from fastqat.nn.layer import autocast_input
from fastqat.testing import assert_same_bits

from .test_nn_ddp import leave
from .test_share_weight_quant import X, assert_equal_steps, model, quantized_layers, step


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


@pytest.mark.skipif(needs_compiler() is not None, reason=str(needs_compiler()))
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


def test_transforms_of_torch_func() -> None:
    net = model("lsq")
    shared = share_weight_quant(copy.deepcopy(net))
    params = {name: p.detach() for name, p in net.named_parameters()}
    results = []
    for each in (net, shared):

        def loss(params: dict[str, Tensor], x: Tensor, each: nn.Module = each) -> Tensor:
            return torch.func.functional_call(each, params, (x[None],)).square().sum()

        whole = torch.func.grad(loss)(params, X[0])
        results.append(whole | {f"vmap {k}": v for k, v in torch.vmap(torch.func.grad(loss), (None, 0))(params, X).items()})
    for name, want in results[0].items():
        torch.testing.assert_close(results[1][name], want, msg=name)
    assert_equal_steps(step(shared), step(net))


def test_interrupted_forward() -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))
    x = net.stem(X).detach()

    def interrupt(part: nn.Module, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    shared.run = interrupt
    with pytest.raises(KeyboardInterrupt):
        shared(X)
    shared.run = net.run = torch.nn.Module.__call__
    copies = copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))
    for each in (net, shared, *copies):
        each.block[0].weight.data.mul_(0.5)  # unseen by the version of the weight
    for each in (shared, *copies):
        for _ in range(2):  # the graph of the interrupted forward is of no use to a second backward
            assert_equal_steps(step(each.block, x), step(net.block, x))
        assert_equal_steps(step(each), step(net))
        assert all(layer.w_hat is None for layer in quantized_layers(each))


def test_weight_changed_within_the_forward() -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))

    def change(part: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            part[0].weight.mul_(0.5)
        return part(x)

    net.run = shared.run = change
    with torch.no_grad():
        assert_same_bits(shared(X), net(X))


def test_inference_mode() -> None:
    with torch.inference_mode():
        net = model()
        assert_same_bits(share_weight_quant(copy.deepcopy(net))(X), net(X))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_input_outside_of_autocast(device: str) -> None:
    x = torch.ones(2, device=device)
    assert autocast_input(x) is x, "torch has no autocast for meta tensors"


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
