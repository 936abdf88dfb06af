"""share_weight_quant: outputs and gradients of every layer on its own, in every mode a model is run in, and nothing is left behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import fastqat as fq
from fastqat.nn import QConfig, calibrate, quantize, share_weight_quant
from fastqat.nn.weights import quantize_weights
from fastqat.ops.fake_quant_all import op
from fastqat.quantizers import QuantSpec
from fastqat.testing import assert_same_bits

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Convolutions and linear layers; one part is used twice, one not at all, one can be checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(8, 5)
        self.run: Callable[[nn.Module, Tensor], Tensor] = lambda part, x: part(x)
        self.passes = 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(self.block, self.stem(x))
        for _ in range(self.passes):
            x = self.twice(x)
        return self.head(x.mean((2, 3)))


SPECS = {
    "lsq": (QuantSpec(4), QuantSpec(4, signed="auto")),
    "lsq channel, per scale": (QuantSpec(3, granularity="channel", grad_factor="per_scale"), QuantSpec(8, signed="auto")),
    "minmax, zero point": (QuantSpec(4, "minmax", symmetric=False), QuantSpec(8, "minmax", symmetric=False)),
    "weights only": (QuantSpec(2, semantics="reciprocal"), None),
    "lsq_plus channel": (QuantSpec(4, "lsq_plus", granularity="channel", symmetric=False), QuantSpec(4, "lsq_plus", symmetric=False)),
    "groups": (QuantSpec(4, granularity=("group", 2)), None),
    "dorefa": (QuantSpec(4, "dorefa"), QuantSpec(4, signed="auto")),
}


def model(case: str = "lsq channel, per scale", **attributes: object) -> Net:
    torch.manual_seed(0)
    weight, activation = SPECS[case]
    other = QConfig(QuantSpec(8), activation)
    net = quantize(Net(), QConfig(weight, activation, overrides={"stem.0": other, "head": other}), skip=())
    with pytest.warns(UserWarning) if activation else contextlib.nullcontext():  # the unused layer stays uncalibrated
        calibrate(net, [X])
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


def step(net: nn.Module, x: Tensor = X) -> tuple[Tensor, dict[str, Tensor | None]]:
    net.zero_grad()
    y = net(x)
    y.square().sum().backward()
    return y.detach(), {name: p.grad for name, p in net.named_parameters()}


def assert_equal_steps(got: tuple, want: tuple, but: str | None = None) -> None:
    """Same bits of the output and of every gradient; sums of the part `but` may be added in another order."""
    assert_same_bits(got[0], want[0], "output")
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        if grad is None or got[1][name] is None:
            assert grad is got[1][name] is None, name
        elif but is not None and name.startswith(but):
            torch.testing.assert_close(got[1][name], grad, rtol=1e-5, atol=1e-6)
        else:
            assert_same_bits(got[1][name], grad, name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tensors of each call of the operator while a test runs."""
    seen: list[int] = []
    original = op.fake_quant_all

    def counted(xs: list[Tensor], *rest: object) -> list[Tensor]:
        seen.append(len(xs))
        return original(xs, *rest)

    monkeypatch.setattr(op, "fake_quant_all", counted)
    return seen


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", SPECS)
def test_same_bits_as_every_layer_on_its_own(case: str, training: bool, calls: list[int]) -> None:
    net = model(case).train(training)
    shared = share_weight_quant(copy.deepcopy(net))
    for _ in range(2):
        assert_equal_steps(step(shared), step(net))
    assert calls == [6, 6], "one call per forward, for the six layers"
    with torch.no_grad():
        assert_same_bits(shared(X), net(X))


def test_a_layer_used_twice() -> None:
    net = model(passes=2)
    assert_equal_steps(step(share_weight_quant(copy.deepcopy(net))), step(net), but="twice")


def test_autocast() -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))
    with torch.autocast("cpu", torch.bfloat16):
        got, want = step(shared), step(net)
    assert got[0].dtype == torch.bfloat16
    assert_equal_steps(got, want)


def test_gradients_accumulate_over_forwards() -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))
    for each in (net, shared):
        (each(X[:3]).sum() + each(X[3:]).square().sum()).backward()
        each(X).sum().backward()
    assert_equal_steps(*((X, {name: p.grad for name, p in each.named_parameters()}) for each in (shared, net)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_of_a_part(reentrant: bool) -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))
    shared.run = lambda part, x: checkpoint(part, x, use_reentrant=reentrant)
    assert_equal_steps(step(shared), step(net))


def test_checkpoint_of_the_whole() -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))
    assert_equal_steps(step(lambda_module(lambda x: checkpoint(shared, x, use_reentrant=False), shared)), step(net))


def lambda_module(forward: Callable[[Tensor], Tensor], parameters: nn.Module) -> nn.Module:
    """A module that runs `forward` and has the parameters of another, by the same names."""
    holder = copy.copy(parameters)
    holder.__dict__ = {**parameters.__dict__, "forward": forward, "_forward_pre_hooks": {}, "_forward_hooks": {}}
    return holder


def test_a_part_called_by_itself() -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))
    x = net.stem(X).detach()
    assert_equal_steps(step(shared.block, x), step(net.block, x))
    assert_same_bits(shared.block(x), net.block(x))


def quantized_layers(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if hasattr(module, "w_hat")]


def test_w_hat_goes_with_its_graph() -> None:
    shared = share_weight_quant(model("lsq"))
    alive: list[weakref.ref] = []

    def watch(part: nn.Module, x: Tensor) -> Tensor:
        alive.append(weakref.ref(shared.head.w_hat))
        return part(x)

    shared.run = watch
    y = shared(X)
    assert all(layer.w_hat is None for layer in quantized_layers(shared)), "the modules let go after the forward"
    assert alive[0]() is not None, "the graph still holds it"
    y.sum().backward()
    del y
    gc.collect()
    assert alive[0]() is None


def test_nothing_is_left_after_an_exception() -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))

    def fail(part: nn.Module, x: Tensor) -> Tensor:
        raise KeyError("in the middle")

    shared.run = fail
    with pytest.raises(KeyError):
        shared(X)
    assert all(layer.w_hat is None for layer in quantized_layers(shared))
    shared.run = net.run
    assert_equal_steps(step(shared), step(net))


def test_weights_that_move_between_forwards() -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))
    for each in (net, shared):
        optimizer = torch.optim.SGD(fq.param_groups(each, 0.05))
        for _ in range(3):
            optimizer.zero_grad()
            each(X).square().mean().backward()
            optimizer.step()
    for (name, want), got in zip(net.state_dict().items(), shared.state_dict().values(), strict=True):
        assert torch.equal(got, want), name


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"])
def test_copies_share_too(copied: Callable[[nn.Module], nn.Module], calls: list[int]) -> None:
    net = quantize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "w4a32", skip=())
    keys = net.state_dict().keys()
    share_weight_quant(net)
    assert net.state_dict().keys() == keys
    other = copied(net)
    net[0].weight.data.zero_()
    other(torch.ones(1, 3))
    assert calls == [2], "the copy makes one call, for its own layers"
    assert all(layer.w_hat is None for layer in quantized_layers(other))
    share_weight_quant(other, False)(torch.ones(1, 3))
    assert calls == [2]
    net(torch.ones(1, 3))
    assert calls == [2, 2], "switching the copy off leaves the original"


def test_switching_twice_and_off(calls: list[int]) -> None:
    net = share_weight_quant(share_weight_quant(model()))
    net(X)
    assert calls == [6]
    share_weight_quant(net, False)(X)
    assert calls == [6]
    assert not net._forward_pre_hooks and not net._forward_hooks
    outer = share_weight_quant(nn.Sequential(share_weight_quant(net)))
    outer(X)
    assert calls == [6, 6], "an outer model takes over"


def test_layers_with_a_computed_weight_are_left_to_themselves(calls: list[int]) -> None:
    net = model("lsq")
    shared = share_weight_quant(copy.deepcopy(net))
    for each in (net, shared):
        prune.l1_unstructured(each.head, "weight", 0.5)
        nn.utils.parametrizations.weight_norm(each.stem[0])
    assert_equal_steps(step(shared), step(net))
    assert calls == [4, 1, 1]


def test_functional_call() -> None:
    net = model()
    shared = share_weight_quant(copy.deepcopy(net))
    doubled = {name: p.detach() * 2 for name, p in net.named_parameters()}
    assert_same_bits(torch.func.functional_call(shared, doubled, (X,)), torch.func.functional_call(net, doubled, (X,)))


def test_one_call_per_device() -> None:
    here, there = (fq.nn.QuantLinear(4, 3, weight=QuantSpec(4), device=device) for device in ("cpu", "meta"))
    layers = [here, there, here]
    w_hats = quantize_weights([layer.weight_quantizer for layer in layers], [layer.weight for layer in layers])
    assert [w_hat.device.type for w_hat in w_hats] == ["cpu", "meta", "cpu"]
    assert_same_bits(w_hats[2], here.weight_quantizer(here.weight))


def test_calibration_while_sharing() -> None:
    net = quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), "w4a4", skip=())
    shared = share_weight_quant(copy.deepcopy(net))
    for each in (net, shared):
        calibrate(each, [X])
    assert_equal_steps(step(shared), step(net))


def test_a_model_without_quantized_weights() -> None:
    with pytest.raises(fq.InputError, match="call fastqat.quantize"):
        share_weight_quant(nn.Linear(2, 2))
