"""Which norms a pass gives: reductions, batches, what counts, sharing, checkpoints, autocast."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastqat as fq

from .per_sample import assert_close, check, measure, norm_of, sample_grads


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 5))


def batch(samples, shape=(3, 8, 8), classes=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *shape, generator=generator), torch.randint(classes, (samples,), generator=generator)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_small_network(samples):
    check(small(), *batch(samples))


def test_sum_and_mean_give_the_same_norms():
    model, (x, y) = small(), batch(6)
    mean = measure(model, x, y)
    with fq.per_sample_grad_norms(model, loss_reduction="sum") as norms:
        F.cross_entropy(model(x), y, reduction="sum").backward()
    assert_close(norms.total, mean.total.double(), 1e-6)


def test_short_last_batch_counts_its_own_samples():
    model, (x, y) = small(), batch(7)
    want = norm_of(sample_grads(model, x, y))
    got = torch.cat([measure(model, *part).total for part in zip(x.split(3), y.split(3), strict=True)])
    assert_close(got, want)


def test_empty_batch():
    model = small()
    with fq.per_sample_grad_norms(model, loss_reduction="sum", per_layer=True) as norms:
        model(torch.empty(0, 3, 8, 8)).sum().backward()
    assert norms.total.shape == (0,) and norms.layers["0"].shape == (0,)


def test_what_requires_grad_counts():
    model, (x, y) = small(), batch(4)
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    model[4].weight.requires_grad_(False)
    norms = measure(model, x, y, per_layer=True)
    assert_close(norms.total, norm_of(sample_grads(model, x, y)))
    assert list(norms.layers) == ["2", "4"]
    assert model[0].weight.grad is None and model[2].weight.grad is not None


def test_scoring_computes_no_weight_gradients(monkeypatch):
    model, (x, y) = small().requires_grad_(False), batch(4)
    asked = []
    record = torch.utils._python_dispatch.TorchDispatchMode

    class Masks(record):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                asked.append(args[-1])
            return func(*args, **(kwargs or {}))

    with Masks():
        measure(model, x, y)
    assert asked == [[True, False, False]]  # the first layer has no use for any gradient


def test_double_precision():
    model, (x, y) = small().double(), batch(3)
    norms = measure(model, x.double(), y)
    assert norms.total.dtype == torch.double
    assert_close(norms.total, norm_of(sample_grads(model, x, y)), 1e-12)


def test_input_that_requires_grad_and_keyword_input():
    model, (x, y) = nn.Linear(6, 5), batch(4, (6,))
    x.requires_grad_(True)
    with fq.per_sample_grad_norms(model) as norms:
        F.cross_entropy(model(input=x), y).backward()
    assert_close(norms.total, norm_of(sample_grads(model, x.detach(), y)))
    assert x.grad is not None


def test_deterministic():
    model, (x, y) = small(), batch(6)
    assert torch.equal(measure(model, x, y).total, measure(model, x, y).total)


class Net(nn.Module):
    """Runs `function(net, x)` as its forward."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def test_module_called_twice():
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head(torch.tanh(n.body(torch.tanh(n.body(x))))), body=nn.Linear(6, 6), head=nn.Linear(6, 5))
    check(net, *batch(5, (6,)))


def test_convolution_called_twice_on_two_sizes():
    torch.manual_seed(0)
    net = Net(
        lambda n, x: n.head(n.conv(F.relu(n.conv(x))).mean((2, 3))),
        conv=nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=2, padding_mode="circular"),
        head=nn.Linear(4, 5),
    )
    check(net, *batch(3, (4, 9, 9)))


def test_weight_shared_by_two_modules():
    torch.manual_seed(0)
    net = Net(lambda n, x: n.b(F.gelu(n.a(x))), a=nn.Linear(5, 5), b=nn.Linear(5, 5))
    net.b.weight = net.a.weight
    x, y = batch(4, (5,))
    samples = sample_grads(net, x, y)
    for trained in (True, False):
        net.requires_grad_(trained)
        norms = measure(net, x, y, per_layer=True)
        assert_close(norms.total, norm_of(samples))
        assert_close(norms.layers["a"], norm_of(samples, lambda name: name.startswith("a")))  # the first owner's
        assert_close(norms.layers["b"], norm_of(samples, lambda name: name == "b.bias"))
    net.requires_grad_(True)


def test_module_registered_twice():
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    check(nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 5)), *batch(4, (6,)))


def test_extra_call_without_gradients_changes_nothing():
    def forward(net, x):
        with torch.no_grad():
            shift = net.body(x).mean(1, keepdim=True)
        return net.head(torch.tanh(net.body(x) + shift))

    torch.manual_seed(0)
    check(Net(forward, body=nn.Linear(6, 6), head=nn.Linear(6, 5)), *batch(5, (6,)))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant, shared):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6))
    other = body if shared else copy.deepcopy(body)

    def forward(net, x):
        x = checkpoint(net.body, net.stem(x), use_reentrant=reentrant)
        return net.head(checkpoint(net.other, x, use_reentrant=reentrant))

    check(Net(forward, stem=nn.Linear(6, 6), body=body, other=other, head=nn.Linear(6, 5)), *batch(5, (6,)))


def test_checkpoint_of_the_first_layer():
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head(checkpoint(n.body, x, use_reentrant=False)), body=small()[:4], head=nn.Linear(36, 5))
    check(net, *batch(4))


def test_checkpoint_keeps_no_inputs_inside():
    """The inputs of layers in a checkpointed part are not kept either: they are computed again."""
    kept = []

    class Watch(nn.Module):
        def forward(self, x):
            import weakref

            kept.append(weakref.ref(x))
            return x

    net = Net(
        lambda n, x: checkpoint(n.body, n.stem(x), use_reentrant=False),
        stem=nn.Linear(6, 6),
        body=nn.Sequential(nn.Linear(6, 6), Watch(), nn.Linear(6, 5)),
    )
    x, y = batch(4, (6,))
    with fq.per_sample_grad_norms(net.requires_grad_(False)) as norms:
        loss = F.cross_entropy(net(x), y)
        assert kept[0]() is None
        loss.backward()
    assert_close(norms.total, norm_of(sample_grads(net, x, y)))


def test_autocast_computes_from_what_the_layers_read():
    model, (x, y) = small(), batch(4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = measure(model, x, y)  # the backward pass in the region too
    with fq.per_sample_grad_norms(model) as norms:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
    assert norms.total.dtype == torch.float32
    assert torch.equal(norms.total, inside.total)
    assert_close(norms.total, norm_of(sample_grads(model, x, y)), 0.05)


def test_output_that_is_a_view_and_changed_in_place():
    """A linear layer's output is a view for inputs of three dimensions; a hook on it would be lost."""
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head(F.relu_(n.body(x)).sum(1)), body=nn.Linear(6, 6), head=nn.Linear(6, 5))
    check(net, *batch(4, (3, 6)))


def test_several_losses_added_up():
    torch.manual_seed(0)
    net = Net(lambda n, x: (n.a(x), n.b(x)), a=nn.Linear(6, 5), b=nn.Linear(6, 5))
    check(net, *batch(4, (6,)), lambda out, y: F.cross_entropy(out[0], y) + 0.3 * F.cross_entropy(out[1], y))


def test_layers_without_gradient_add_zero():
    net = Net(lambda n, x: n.a(x), a=nn.Linear(6, 5), b=nn.Linear(6, 5))
    x, y = batch(4, (6,))
    norms = measure(net, x, y, per_layer=True)
    assert torch.equal(norms.layers["b"], torch.zeros(4))
    assert_close(norms.total, norm_of(sample_grads(net, x, y)))


def test_part_of_a_model():
    """Calling a submodule only: the batch is that of the first layer."""
    model, (x, y) = small(), batch(4)
    with fq.per_sample_grad_norms(model) as norms:
        F.cross_entropy(model[4](model[:4](x)), y).backward()
    assert_close(norms.total, norm_of(sample_grads(model, x, y)))


def test_distributed_data_parallel(tmp_path):
    model, (x, y) = small(), batch(4)
    want = norm_of(sample_grads(model, x, y))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert_close(measure(wrapped, x, y).total, want)
        assert wrapped.module[0].weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()


def test_rules_for_parametrized_weights_are_not_guessed():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)))
    with pytest.raises(fq.InputError, match="weight"):
        measure(model, *batch(4, (6,)))
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)))
    with pytest.raises(fq.InputError, match="weight_g"):
        measure(model, *batch(4, (6,)))
