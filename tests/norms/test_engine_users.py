"""What users do to models and modules: hooks, patched forwards, subclasses, single samples, copies."""

import contextlib
import copy
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastqat as fq

from .per_sample import assert_close, check, measure, norm_of, sample_grads
from .test_engine import Net, batch, small


def pair(first=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6) if first is None else first, nn.Tanh(), nn.Linear(6, 5))


def compare(model, x, y, **options):
    """Norms in scoring and in training, against the oracle on the model itself: a copy would not have what is patched."""
    want = []
    for row, label in zip(x, y, strict=True):
        grads = torch.autograd.grad(F.cross_entropy(model(row[None]), label[None]), list(model.parameters()), allow_unused=True)
        want.append(sum(g.double().square().sum() for g in grads if g is not None).sqrt())
    for trained in (True, False):
        model.requires_grad_(trained)
        assert_close(measure(model, x, y, **options).total, torch.stack(want))
    model.requires_grad_(True)


HOOKS = {
    "output": lambda layer: layer.register_forward_hook(lambda module, args, y: y * torch.arange(6.0)),
    "output, with its own weight": lambda layer: layer.register_forward_hook(lambda module, args, y: y * module.bias),
    "input": lambda layer: layer.register_forward_pre_hook(lambda module, args: (args[0] * 3,)),
    "gradient of the output": lambda layer: layer.register_full_backward_pre_hook(lambda module, grads: (grads[0] * 1.0,)),
    "gradient of the input": lambda layer: layer.register_full_backward_hook(lambda module, grads, of_output: None),
    "first": lambda layer: layer.register_forward_hook(lambda module, args, y: y.sin(), prepend=True),
}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", HOOKS)
def test_users_hooks(name, quantized):
    if quantized and "own weight" in name:
        pytest.skip("parameters of a quantized layer are read by the layer only")
    model = pair(fq.nn.QuantLinear(6, 6, weight=fq.QuantSpec(8)) if quantized else None)
    HOOKS[name](model[0])
    compare(model, *batch(4, (6,)))


def test_forward_replaced_on_the_instance():
    model = pair()
    layer, plain = model[0], model[0].forward
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias) * 2
    compare(model, *batch(4, (6,)))
    layer.forward = lambda *args: plain(*args) * 3
    compare(model, *batch(4, (6,)))
    layer.forward = types.MethodType(nn.Linear.forward, layer)
    compare(model, *batch(4, (6,)))
    layer.forward = lambda x: x @ layer.weight.T
    with pytest.raises(fq.InputError, match="matmul"):
        measure(model, *batch(4, (6,)))


def test_forward_replaced_on_a_quantized_layer():
    model = pair(fq.nn.QuantLinear(6, 6, weight=fq.QuantSpec(8)))
    model[0].forward = lambda x: F.linear(x, model[0].weight)
    with pytest.raises(fq.InputError, match=r"0 \(QuantLinear\) has a forward of its own"):
        measure(model, *batch(4, (6,)))


class Standardized(nn.Conv2d):
    """Changes what the layer's forward calls, not the forward itself."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True), bias)


def test_subclass_with_its_own_helper():
    model = nn.Sequential(Standardized(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(fq.InputError, match="Standardized"):
        measure(model, *batch(4, (3, 4, 4)))
    check(model, *batch(4, (3, 4, 4)), unknown="func")


def test_subclass_that_changes_nothing_keeps_its_rule():
    check(pair(type("Mine", (nn.Linear,), {"extra_repr": lambda self: ""})(6, 6)), *batch(4, (6,)))


class OwnBatchNorm(nn.BatchNorm1d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_batch_norm_in_train_mode_with_a_forward_of_its_own(frozen, late):
    for norm in (OwnBatchNorm(6), OwnBatchNorm(6, affine=False), nn.BatchNorm1d(6, affine=False)):
        model = nn.Sequential(nn.Linear(6, 6), norm.requires_grad_(not frozen), nn.Linear(6, 5)).train(not late)
        if norm.affine and not frozen:
            norm.requires_grad_(False)
        x, y = batch(4, (6,))
        with pytest.raises(fq.InputError, match=r"1 \(\w+\): in train mode"), fq.per_sample_grad_norms(model):
            F.cross_entropy(model.train()(x), y).backward()
        assert_close(measure(model.eval(), x, y).total, norm_of(sample_grads(model, x, y)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 3, 3), (3, 8, 8)),
        (nn.ConvTranspose1d(3, 3, 3), (3, 8)),
        (nn.InstanceNorm2d(3, affine=True), (3, 8, 8)),
        (nn.LayerNorm((4, 6)), (4, 6)),
        (nn.RMSNorm(6), (6,)),
        (nn.Linear(6, 6), (6,)),
        (fq.nn.QuantConv2d(3, 3, 3), (3, 8, 8)),
        (fq.nn.QuantLinear(6, 6), (6,)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_sample_without_a_batch(layer, shape):
    x = torch.randn(shape)
    with pytest.raises(fq.InputError, match=rf"was given \[{shape[0]}.*in no batch; accepted: a batch\. Pass x\[None\]"):
        measure(layer, x, torch.zeros(shape[0]), lambda y, target: y.square().mean())
    with fq.per_sample_grad_norms(layer) as norms:
        layer(x[None]).square().sum().backward()
    assert norms.total.shape == (1,)


def test_copy_made_inside_the_block():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    quant = fq.nn.QuantLinear(6, 6, weight=fq.QuantSpec(8))
    model = Net(lambda n, x: n.head(n.attention(n.q(x), x, x)[0].mean(1)), attention=attention, q=quant, head=nn.Linear(6, 5))
    x, y = batch(3, (4, 6))
    want = measure(model, x, y).total
    with fq.per_sample_grad_norms(model) as norms:
        twin = copy.deepcopy(model)
        twin(x)
        F.cross_entropy(model(x), y).backward()
        F.cross_entropy(twin(x), y).backward()
    assert torch.equal(norms.total, want)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(0.5)
    assert not torch.allclose(twin(x), model(x))
    assert_close(measure(twin, x, y).total, norm_of(sample_grads(twin, x, y)), 1e-4)


def test_hook_that_fails_and_is_caught():
    def fail(*args):
        raise RuntimeError

    def forward(net, x):
        with contextlib.suppress(RuntimeError):
            net.extra(x)
        return net.body(x * net.scale)

    torch.manual_seed(0)
    model = Net(forward, extra=nn.Linear(6, 6), body=nn.Linear(6, 5))
    model.scale = nn.Parameter(torch.randn(6))
    model.extra.register_forward_pre_hook(fail)
    check(model, *batch(4, (6,)))


def test_results_that_are_not_there_are_no_attributes():
    norms = measure(small(), *batch(3))
    assert not hasattr(norms, "layers") and hasattr(norms, "total") and getattr(norms, "scale_grads", None) is None


def test_shared_table_in_bounded_memory():
    """Per-sample gradients of a shared parameter are formed for some samples at a time."""
    torch.manual_seed(0)
    samples, words, width = 48, 4000, 128
    model = Net(lambda n, x: n.out(n.table(x)).mean(1), table=nn.Embedding(words, width), out=nn.Linear(width, words, bias=False))
    model.out.weight = model.table.weight
    x, y = torch.randint(words, (samples, 2)), torch.randint(words, (samples,))
    model.requires_grad_(False)
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.append(max((t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)), default=0))
            return out

    with Sizes():
        norms = measure(model, x, y)
    assert max(largest) <= 1 << 24 < samples * words * width
    assert_close(norms.total[:3], norm_of(sample_grads(model, x[:3], y[:3])))


@pytest.mark.parametrize("samples", [3, 6])
def test_positions_as_many_as_samples(samples):
    """Positions are the same for all samples, whatever their number."""
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head((x + n.place(torch.arange(6))).tanh().mean(1)), place=nn.Embedding(8, 6), head=nn.Linear(6, 5))
    check(net, *batch(samples, (6, 6)))
    net.function = lambda n, x: n.head((x + n.place(torch.arange(6)[None])).tanh().mean(1))
    check(net, *batch(samples, (6, 6)))
    net.function = lambda n, x: n.head(n.place(x))  # one id per sample, given to the model
    check(net, torch.arange(samples), batch(samples)[1])
