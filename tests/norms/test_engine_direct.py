"""Parameters that no layer holds, followed where they are read, and torch.func for what cannot be followed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastqat as fq

from .per_sample import assert_close, check, measure, norm_of, sample_grads
from .test_engine import Net, batch

TOKENS = batch(4, (3, 6))


def net_with(function, head=True, **shapes):
    """`function(net, x)` on parameters of these shapes, its mean over tokens to a linear head."""
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head(function(n, n.stem(x)).mean(1)), stem=nn.Linear(6, 6), head=nn.Linear(6, 5))
    for name, shape in shapes.items():
        net.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return net


FOLLOWED = {
    "position": (lambda n, x: x + n.p, {"p": (1, 3, 6)}),
    "position that is cut": (lambda n, x: x + n.p[:, : x.shape[1]], {"p": (1, 5, 6)}),
    "no batch dimension": (lambda n, x: x * n.p, {"p": (3, 6)}),
    "per channel": (lambda n, x: n.p * x + n.q, {"p": (6,), "q": (6,)}),
    "scalar": (lambda n, x: x * torch.tanh(n.p) / n.p.exp(), {"p": ()}),
    "as many rows as samples": (lambda n, x: x.repeat(1, 2, 1)[:, :4] * n.p, {"p": (4, 6)}),
    "class token": (lambda n, x: torch.cat([n.p.expand(len(x), -1, -1), x], 1) + n.q, {"p": (1, 1, 6), "q": (1, 4, 6)}),
    "class token with position": (
        lambda n, x: torch.cat([(n.p + n.q[:, :1]).expand(len(x), -1, -1), x], 1),
        {"p": (1, 1, 6), "q": (1, 4, 6)},
    ),
    "repeated token": (lambda n, x: torch.cat([x, n.p.repeat(x.shape[0], 2, 1)], 1), {"p": (1, 1, 6)}),
    "expanded like": (lambda n, x: x * n.p.expand_as(x), {"p": (6,)}),
    "in place on the batch": (lambda n, x: (x * 1).mul_(n.p).add_(n.q), {"p": (6,), "q": ()}),
    "reshaped": (lambda n, x: x - n.p.view(2, 3, 3).transpose(0, 1).reshape(1, 3, 6), {"p": (18,)}),
    "resized": (lambda n, x: x + F.interpolate(n.p.transpose(1, 2), 3, mode="linear").transpose(1, 2), {"p": (1, 5, 6)}),
    "products of parameters": (lambda n, x: x + n.p @ n.q, {"p": (3, 2), "q": (2, 6)}),
    "softmax of a parameter": (lambda n, x: x * n.p.softmax(0)[2], {"p": (3, 6)}),
    "several parts": (lambda n, x: x * n.p.chunk(2)[0] + n.p[3:].sum(), {"p": (12,)}),
    "a constant": (lambda n, x: x * (n.p * torch.arange(6.0, dtype=x.dtype)), {"p": (6,)}),
    "used twice": (lambda n, x: (x * n.p).tanh() * n.p, {"p": (6,)}),
    "another dtype": (lambda n, x: x * n.p.to(x.dtype).type_as(x), {"p": (6,)}),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_followed(case):
    function, shapes = FOLLOWED[case]
    check(net_with(function, **shapes), *TOKENS)


def test_layer_scale_over_channels():
    """As in ConvNeXt: [C, 1, 1] beside [N, C, H, W]."""
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head((n.scale * n.conv(x)).mean((2, 3))), conv=nn.Conv2d(3, 6, 3), head=nn.Linear(6, 5))
    net.scale = nn.Parameter(torch.randn(6, 1, 1))
    check(net, *batch(4, (3, 5, 5)))


def test_a_sample_alone():
    check(net_with(*FOLLOWED["class token"][:1], **FOLLOWED["class token"][1]), *batch(1, (3, 6)))


def test_directly_on_the_input():
    net = net_with(lambda n, x: x, p=(1, 3, 6))
    net.function = lambda n, x: n.head((x + n.p).mean(1))
    check(net, *TOKENS)


def test_list_of_parameters():
    torch.manual_seed(0)
    net = net_with(lambda n, x: x * n.scales[0] + n.scales[1])
    net.scales = nn.ParameterList([torch.randn(6), torch.randn(3, 6)])
    check(net, *TOKENS)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpoint(reentrant):
    net = net_with(lambda n, x: checkpoint(n.own, checkpoint(n.own, x, use_reentrant=reentrant), use_reentrant=reentrant))
    net.own = Net(lambda n, x: (x * n.p).tanh() * n.p + n.q)
    net.own.p, net.own.q = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(1, 3, 6))
    check(net, *TOKENS)


def test_module_with_a_parameter_called_twice():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(6))

        def forward(self, x):
            return x * self.scale

    net = net_with(lambda n, x: n.own(n.own(x).tanh()))
    net.own = Scale()
    check(net, *TOKENS)


REFUSED = {
    "a product with the batch": (lambda n, x: x @ n.p, "matmul"),
    "a row where a mask says so": (lambda n, x: x + torch.where(x > 0, n.p[0], x), "where"),
    "a function of a part of it": (lambda n, x: x + F.linear(x, n.p[:, :6] * 2), "linear"),
    "changed in place": (lambda n, x: x + n.p[0].clone().mul_(x.mean()), "mul_"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("trained", [True, False])
def test_refused_and_left_to_func(case, trained):
    function, name = REFUSED[case]
    net = net_with(function, p=(6, 6)).requires_grad_(trained)
    with pytest.raises(fq.InputError, match=rf"a parameter of the model \(Net\) is given to {name}"):
        measure(net, *TOKENS)
    if case != "changed in place":  # by a mean over the samples
        check(net, *TOKENS, unknown="func")


class Square(torch.autograd.Function):
    """Torch's modes do not see the arguments of a Function."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale):
        return x * scale**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        return grad * scale**2, (2 * grad * x * scale).sum_to_size(scale.shape)


@pytest.mark.parametrize("trained", [True, False])
def test_autograd_functions(trained):
    net = net_with(lambda n, x: Square.apply(x, n.p), p=(6,)).requires_grad_(trained)
    with pytest.raises(fq.InputError, match=r"p of the model \(Net\) was not seen"):
        measure(net, *TOKENS)
    check(net, *TOKENS, unknown="func")


def test_unused_parameter():
    net = net_with(lambda n, x: x, p=(6,))
    with pytest.raises(fq.InputError, match="it is unused, or given to an autograd Function"):
        measure(net, *TOKENS)
    check(net, *TOKENS, unknown="func")


class Mixed(nn.Module):
    """A module of the user's: a followed parameter, one that is not, and a layer with a rule."""

    def __init__(self):
        super().__init__()
        self.p, self.w, self.inner = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 6)

    def forward(self, x, scale=1.0):
        return self.inner(x @ self.w).tanh() * self.p * scale


@pytest.mark.parametrize("calls", [1, 2])
def test_func_for_one_module_of_several(calls):
    net = net_with(lambda n, x: n.own(x, scale=0.5) if calls == 1 else n.own(n.own(x)))
    net.own = Mixed()
    check(net, *TOKENS, unknown="func")


def test_func_with_quantized_layers_and_attention_inside():
    net = net_with(lambda n, x: n.own(x))
    torch.manual_seed(0)
    net.own = Net(
        lambda n, x: n.quant(n.attention(x, x, x, need_weights=False)[0] @ n.w),
        quant=fq.nn.QuantLinear(6, 6),
        attention=nn.MultiheadAttention(6, 2, batch_first=True),
    )
    net.own.w = nn.Parameter(torch.randn(6, 6))
    check(net, *TOKENS, unknown="func")


def test_func_on_torchs_modules():
    torch.manual_seed(0)
    net = Net(lambda n, x: n.pair(x[:, 0], x[:, 1:].mean(1)), pair=nn.Bilinear(6, 6, 5))
    check(net, *TOKENS, unknown="func")


def test_func_refuses_what_is_drawn_and_what_changes_its_input():
    noisy = net_with(lambda n, x: n.own(x))
    noisy.own = Net(lambda n, x: F.dropout(x @ n.w, 0.5))
    noisy.own.w = nn.Parameter(torch.randn(6, 6))
    with pytest.raises(fq.InputError, match=r"torch.func cannot run own \(Net\)"):
        measure(noisy, *TOKENS, unknown="func")
    noisy.own.function = lambda n, x: x.mul_(2) @ n.w
    with pytest.raises(fq.InputError, match=r"own \(Net\) changes its input in place"):
        measure(noisy, *TOKENS, unknown="func")


def test_func_cannot_serve_two_places():
    """A parameter that is followed in the model and given to what cannot be followed in another call."""
    net = net_with(lambda n, x: n.own(x * n.own.w[0]))
    net.own = Net(lambda n, x: x @ n.w)
    net.own.w = nn.Parameter(torch.randn(6, 6))
    with pytest.raises(fq.InputError, match="used outside of this call"):
        measure(net, *TOKENS, unknown="func")


def test_gradients_of_a_followed_parameter_arrive():
    net = net_with(lambda n, x: x + n.p, p=(1, 3, 6))
    x, y = TOKENS
    F.cross_entropy(net(x), y).backward()
    want = net.p.grad.clone()
    net.zero_grad()
    norms = measure(net, x, y)
    torch.testing.assert_close(net.p.grad, want)
    assert_close(norms.total, norm_of(sample_grads(net, x, y)))


FUNCTIONS = {
    "linear": (lambda n, x: F.linear(x, n.w, bias=n.b), {"w": (6, 6), "b": (6,)}),
    "linear, weight alone": (lambda n, x: F.linear(x, n.w), {"w": (6, 6)}),
    "conv1d": (lambda n, x: F.conv1d(x, n.w, n.b, padding="same", groups=6), {"w": (6, 1, 3), "b": (6,)}),
    "conv2d": (lambda n, x: F.conv2d(x[:, None], n.w, None, 1, 1)[:, 0], {"w": (1, 1, 3, 3)}),
    "layer_norm": (lambda n, x: F.layer_norm(x, (6,), n.w, n.b, 1e-3), {"w": (6,), "b": (6,)}),
    "group_norm": (lambda n, x: F.group_norm(x, 3, weight=n.w, bias=n.b), {"w": (3,), "b": (3,)}),
    "rms_norm": (lambda n, x: F.rms_norm(x, (6,), n.w), {"w": (6,)}),
    "batch_norm": (lambda n, x: F.batch_norm(x, n.w, n.w**2, n.b, n.b), {"w": (3,), "b": (3,)}),
    "instance_norm": (lambda n, x: F.instance_norm(x, weight=n.w, bias=n.b), {"w": (3,), "b": (3,)}),
    "prelu": (lambda n, x: F.prelu(x, n.w), {"w": (3,)}),
    "prelu with one slope": (lambda n, x: F.prelu(x, n.w), {"w": (1,)}),
    "embedding": (lambda n, x: x + F.embedding((x > 0).sum(2), n.w, padding_idx=-1), {"w": (7, 6)}),
    "embedding of positions": (lambda n, x: x + F.embedding(torch.arange(x.shape[1]), n.w), {"w": (7, 6)}),
    "conv_transpose1d": (lambda n, x: F.conv_transpose1d(x, n.w, n.b, 2, 1, 1), {"w": (3, 4, 3), "b": (4,)}),
    "conv_transpose2d": (lambda n, x: F.conv_transpose2d(x[:, None], n.w, stride=(2, 1), padding=1)[:, 0], {"w": (1, 1, 3, 3)}),
    "used twice": (lambda n, x: F.linear(F.linear(x, n.w).tanh(), n.w, n.b), {"w": (6, 6), "b": (6,)}),
    "used in two ways": (lambda n, x: F.linear(x, n.w) * n.w.sum(0), {"w": (6, 6)}),
    "tied to a layer": (lambda n, x: F.linear(n.stem(x).tanh(), n.stem.weight), {}),
    "a row of a layer's weight": (lambda n, x: x * n.stem.weight[2] + n.stem.bias.exp(), {}),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_that_are_layers(case):
    pytest.importorskip("fastqat.norms.rules.normalization")
    function, shapes = FUNCTIONS[case]
    torch.manual_seed(0)
    net = net_with(function, **shapes)
    if case == "batch_norm":
        net.register_buffer("w", net._parameters.pop("w").detach())
    if case.startswith("conv_transpose"):
        net.function = lambda n, x: n.head(function(n, n.stem(x)).mean(1)[:, :6])
    if case == "prelu with one slope":  # a sum over all elements, which nearly cancel
        check(net, *TOKENS, tolerance=1e-4)
        return
    if case == "conv1d":
        net.function = lambda n, x: n.head(function(n, n.stem(x).transpose(1, 2)).mean(2))
    check(net, *TOKENS)


def test_function_and_func_for_one_parameter():
    """What the rule would deliver is dropped when torch.func measures all uses of the parameter."""
    net = net_with(lambda n, x: F.linear(x, n.p).tanh() @ n.p, p=(6, 6))
    check(net, *TOKENS, unknown="func")


def test_read_inside_a_reentrant_checkpoint():
    net = net_with(lambda n, x: checkpoint(lambda x: x * n.p, x * n.p, use_reentrant=True), p=(6,))
    with pytest.raises(fq.InputError, match="read inside of a reentrant checkpoint"):
        measure(net, *TOKENS)


def test_changed_without_gradients_in_the_forward():
    def forward(net, x):
        with torch.no_grad():
            net.p.clamp_(-1, 1)
        return x * net.p

    check(net_with(forward, p=(6,)), *TOKENS)
