"""What a pass refuses, with the name of the layer; and that nothing stays behind, however a block ends."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastqat as fq

from .per_sample import assert_close, measure, norm_of, sample_grads
from .test_engine import Net, batch, small


def traces(model):
    """Everything that a block could leave on a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        ({name for name in vars(module) if name not in hooks}, [len(getattr(module, name)) for name in hooks], dict(module._parameters))
        for module in model.modules()
    ]


def everything():
    """A model with a module of every kind that is watched."""
    torch.manual_seed(0)

    def forward(net, x):
        x = net.quant(net.linear(x) + net.shift)
        return net.bilinear(x.mean(1), x.sum(1)) + net.attention(x, x, x)[0].mean(1)

    net = Net(
        forward,
        linear=nn.Linear(6, 6),
        quant=fq.nn.QuantLinear(6, 6, weight=fq.QuantSpec(4)),
        attention=nn.MultiheadAttention(6, 2, batch_first=True),
        bilinear=nn.Bilinear(6, 6, 6),
    )
    net.shift = nn.Parameter(torch.randn(1, 3, 6))
    return net


@pytest.mark.parametrize("ending", ["well", "in the body", "in the forward", "in the backward", "without a pass", "at entry", "interrupt"])
def test_nothing_stays_behind(ending):
    model = everything()
    fq.nn.share_weight_quant(model)
    before, fast_path = traces(model), torch.backends.mha.get_fastpath_enabled()
    errors = {"in the body": KeyError, "interrupt": KeyboardInterrupt, "in the forward": RuntimeError, "in the backward": ZeroDivisionError}
    x = torch.randn(4, 3, 5 if ending == "in the forward" else 6)

    def raise_it(grad):
        raise ZeroDivisionError

    def run():
        with fq.per_sample_grad_norms(model, unknown="refuse" if ending == "at entry" else "func") as norms:
            if ending == "without a pass":
                return
            loss = model(x).square().mean(1)
            if ending in ("in the body", "interrupt"):
                raise errors[ending]
            if ending == "in the backward":
                loss.register_hook(raise_it)
            loss.mean().backward()
        assert norms.total.shape == (4,)

    if ending == "well":
        run()
    else:
        with pytest.raises(errors.get(ending, fq.InputError)):
            run()
    assert traces(model) == before
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("fails", [False, True])
def test_tensors_are_freed(fails):
    """Inputs of layers go when their rule has run, and at the end at the latest, though the loss is still held."""
    model, (x, y) = small().requires_grad_(False), batch(4)
    kept = []
    handle = model[4].register_forward_pre_hook(lambda module, args: kept.append(weakref.ref(args[0])))
    held = []
    try:
        with fq.per_sample_grad_norms(model) as norms:
            held.append(F.cross_entropy(model(x), y))
            if fails:
                raise KeyError
            held[0].backward()
            assert kept[0]() is None
    except KeyError:
        pass
    handle.remove()
    gc.collect()
    assert kept[0]() is None
    engine = weakref.ref(model[0])
    del model
    gc.collect()
    assert engine() is None and norms is not None


def test_unknown_options():
    with pytest.raises(fq.InputError, match="loss_reduction is 'none'"), fq.per_sample_grad_norms(small(), loss_reduction="none"):
        pass
    with pytest.raises(fq.InputError, match="unknown is 'skip'"), fq.per_sample_grad_norms(small(), unknown="skip"):
        pass
    with pytest.raises(fq.InputError, match=r"accepted: a torch\.nn\.Module"), fq.per_sample_grad_norms("resnet"):
        pass
    with pytest.raises(fq.InputError, match="no parameters"), fq.per_sample_grad_norms(nn.ReLU()):
        pass


def test_reading_too_early_and_what_was_not_asked_for():
    model, (x, y) = small(), batch(4)
    with fq.per_sample_grad_norms(model) as norms:
        F.cross_entropy(model(x), y).backward()
        for name in ("total", "sq_total", "layers"):
            with pytest.raises(fq.InputError, match="the block has not ended"):
                getattr(norms, name)
    with pytest.raises(fq.InputError, match="pass per_layer=True"):
        _ = norms.layers
    with pytest.raises(fq.InputError, match="pass scale_grads=True"):
        _ = norms.scale_names
    with pytest.raises(AttributeError, match="no attribute 'totals'"):
        _ = norms.totals
    with pytest.raises(KeyError), fq.per_sample_grad_norms(model) as norms:
        raise KeyError
    with pytest.raises(fq.InputError, match="ended with an error"):
        _ = norms.total


def test_number_of_passes():
    model, (x, y) = small(), batch(4)
    with pytest.raises(fq.InputError, match="no gradient reached"), fq.per_sample_grad_norms(model):
        model(x)
    with pytest.raises(fq.InputError, match="no gradient reached"), fq.per_sample_grad_norms(model), torch.no_grad():
        model(x)
    with pytest.raises(fq.InputError, match="a second forward pass"), fq.per_sample_grad_norms(model):
        model(x)
        model(x)
    with pytest.raises(fq.InputError, match=r"a second backward pass reached 4 \(Linear\)"), fq.per_sample_grad_norms(model):
        loss = F.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        loss.backward()


def test_block_inside_a_block():
    model, other, (x, y) = small(), small(), batch(4)
    with fq.per_sample_grad_norms(model) as outer:
        with pytest.raises(fq.InputError, match="still open"), fq.per_sample_grad_norms(model[2]):
            pass
        loss = F.cross_entropy(model(x), y)
        inner = measure(other, x, y)
        loss.backward()
    assert torch.equal(outer.total, inner.total)
    assert torch.equal(measure(model, x, y).total, inner.total)


def test_batch_must_be_in_dimension_0():
    fold = Net(lambda n, x: n.head(n.body(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)), body=nn.Linear(6, 6), head=nn.Linear(6, 5))
    with pytest.raises(fq.InputError, match=r"input of body \(Linear\) is \[12, 6\]; accepted: the 4 samples"):
        measure(fold, *batch(4, (3, 6)))
    for width in (5, 6):  # a sample without a batch
        with pytest.raises(fq.InputError, match=r"the model \(Linear\) was given \[6\], a sample that is in no batch"):
            measure(nn.Linear(6, width), torch.randn(6), torch.tensor(1))


def test_input_changed_in_place():
    net = Net(lambda n, x: n.head(n.body(x * 1) + x.mul_(2)), body=nn.Linear(6, 6), head=nn.Linear(6, 5)).requires_grad_(False)
    measure(net, *batch(4, (6,)))  # the layer read a copy
    net = Net(lambda n, x: n.head(n.body(x) + x.mul_(2)), body=nn.Linear(6, 6), head=nn.Linear(6, 5)).requires_grad_(False)
    with pytest.raises(fq.InputError, match=r"the input of body \(Linear\) was changed in place"):
        measure(net, *batch(4, (6,)))


def test_modules_without_a_rule():
    model = Net(lambda n, x: n.pair(x, x), pair=nn.Bilinear(6, 6, 5))
    with pytest.raises(fq.InputError, match=r"pair \(Bilinear\) has no rule .* bias, weight: register a rule"):
        measure(model, *batch(4, (6,)))
    model = Net(lambda n, x: n.rnn(x)[0][:, 0], rnn=nn.LSTM(6, 5, batch_first=True))
    with pytest.raises(fq.InputError, match=r"rnn \(LSTM\) has no rule"):
        measure(model, *batch(4, (3, 6)))


def test_layer_with_two_outputs():
    class Two(nn.Linear):
        def forward(self, x):
            y = x @ self.weight.T + self.bias
            return y, y

    with pytest.raises(fq.InputError, match=r"a parameter of body \(Two\) is given to matmul"):  # its rule is not inherited
        measure(Net(lambda n, x: n.body(x)[0], body=Two(6, 5)), *batch(4, (6,)))


@pytest.mark.parametrize("trained", [True, False])
def test_layer_parameter_read_outside_its_layer(trained):
    torch.manual_seed(0)
    net = Net(lambda n, x: n.body(x) @ n.body.weight.T, body=nn.Linear(6, 6)).requires_grad_(trained)
    with pytest.raises(fq.InputError, match=r"a parameter of body \(Linear\) is given to matmul, through which it cannot be followed"):
        measure(net, *batch(4, (6,)))
    net = Net(lambda n, x: n.body(x) * n.body.weight[0], body=fq.nn.QuantLinear(6, 6)).requires_grad_(trained)
    with pytest.raises(fq.InputError, match=r"body \(QuantLinear\) is given to __getitem__ outside of that layer's forward"):
        measure(net, *batch(4, (6,)))


def test_penalty_on_the_weights_is_no_samples_loss():
    model, (x, y) = small(), batch(4)
    with pytest.raises(fq.InputError, match="A penalty on parameters"), fq.per_sample_grad_norms(model):
        (F.cross_entropy(model(x), y) + sum(p.square().sum() for p in model.parameters())).backward()


def test_reading_shapes_and_values_is_no_use():
    def forward(net, x):
        assert net.head.weight.shape[0] == 5 and net.head.weight.detach().sum().isfinite() and str(net.head.weight)
        return net.head(x.to(net.head.weight.dtype))

    net, (x, y) = Net(forward, head=nn.Linear(6, 5)), batch(4, (6,))
    assert_close(measure(net, x, y).total, norm_of(sample_grads(net, x, y)))


def test_optimizer_step_inside_the_block():
    model, (x, y) = small(), batch(4)
    want = measure(model, x, y).total
    optimizer = torch.optim.AdamW(model.parameters())
    with fq.per_sample_grad_norms(model) as norms:
        F.cross_entropy(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert torch.equal(norms.total, want)


def test_wrappers():
    with pytest.raises(fq.InputError, match="DataParallel"), fq.per_sample_grad_norms(nn.DataParallel(small())):
        pass
    with pytest.raises(fq.InputError, match="compiled"), fq.per_sample_grad_norms(torch.compile(small())):
        pass
    inside = small()
    inside[2].compile()
    with pytest.raises(fq.InputError, match=r"2 \(Conv2d\) is compiled"), fq.per_sample_grad_norms(inside):
        pass


def test_quantized_layer_called_twice():
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head(n.body(n.body(x))), body=fq.nn.QuantLinear(6, 6, weight=fq.QuantSpec(4)), head=nn.Linear(6, 5))
    with pytest.raises(fq.InputError, match=r"body \(QuantLinear\)"):
        measure(net, *batch(4, (6,)))


def test_quantized_layers_that_share_a_weight():
    layers = nn.ModuleDict({name: fq.nn.QuantLinear(5, 5, weight=fq.QuantSpec(4)) for name in "ab"})
    layers["b"].weight = layers["a"].weight
    with pytest.raises(fq.InputError, match=r"weight of a \(QuantLinear\) is shared by a, b"):
        measure(Net(lambda n, x: n.net["b"](n.net["a"](x)), net=layers).net, *batch(4, (5,)))
