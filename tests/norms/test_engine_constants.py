"""What is the same for all samples beside what is not: told apart where shapes cannot, and refused where neither is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastqat as fq

from .per_sample import check, measure
from .test_engine import Net, batch

BATCHES = [(4, 3), (3, 3), (1, 3), (1, 1), (2, 5)]  # N, T


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it: the batch is folded into positions."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("first", [nn.Identity(), nn.Linear(6, 6), nn.Linear(6, 6).requires_grad_(False)])
@pytest.mark.parametrize("head", [nn.Linear(4, 5), fq.nn.QuantLinear(4, 5), nn.Sequential(nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 5))])
def test_folded_batch(first, head):
    net = Net(lambda n, x: n.head(n.conv(n.first(x))).mean(1), first=first, conv=Conv1D(6, 4), head=head)
    for n in (1, 4):
        with pytest.raises(fq.InputError, match=rf"conv \(Conv1D\) is given to addmm together with \[{3 * n}, 6\]"):
            measure(net, *batch(n, (3, 6)))


@pytest.mark.parametrize("n,t", BATCHES)
def test_folded_batch_by_func(n, t):
    check(Net(lambda n, x: n.head(n.conv(x)).mean(1), conv=Conv1D(6, 4), head=nn.Linear(4, 5)), *batch(n, (t, 6)), unknown="func")


FOLDED = {
    "flattened": lambda n, x: (x.flatten(0, 1) * n.p).view_as(x),
    "transposed": lambda n, x: (x.transpose(0, 1) * n.p).transpose(0, 1),
    "folded, then a function": lambda n, x: (x.reshape(-1, 6) + n.p).relu().reshape(x.shape),
    "in a frozen layer": lambda n, x: (n.frozen(x).flatten(0, 1) * n.p).view(x.shape),
    "into a new tensor": lambda n, x: (torch.zeros(x.shape[0] * x.shape[1], 6).copy_(x.flatten(0, 1)) * n.p).view_as(x),
    "written to a new tensor": lambda n, x: (written(x) * n.p).view_as(x),
}


def written(x):
    made = torch.zeros(x.shape[0] * x.shape[1], 6)
    made[1:] = x.flatten(0, 1)[1:]
    return made


@pytest.mark.parametrize("case", FOLDED)
def test_folded_batch_and_a_parameter(case):
    net = Net(lambda n, x: n.head(FOLDED[case](n, x)).mean(1), frozen=nn.Linear(6, 6).requires_grad_(False), head=nn.Linear(6, 5))
    net.p = nn.Parameter(torch.randn(6))
    with pytest.raises(fq.InputError, match=r"a parameter of the model \(Net\) is given to (mul|add) together with \["):
        measure(net, *batch(4, (3, 6)))


def queries(function, size=6, **children):
    """A model with a parameter `q` ``[3, 6]``, what `function` makes of it added to each token, and a head."""
    torch.manual_seed(0)
    layers = {"proj": nn.Linear(6, size), "norm": nn.LayerNorm(6), **children}
    net = Net(lambda n, x: n.head(torch.tanh(x[:, :1] + function(n)).mean(1)), **layers, head=nn.Linear(6, 5))
    net.q = nn.Parameter(torch.randn(3, 6))
    for name in ("proj", "norm"):
        if name not in function.__code__.co_names:
            delattr(net, name)
    return net


LATENTS = {
    "a linear layer": lambda n: n.proj(n.q),
    "two layers": lambda n: n.proj(n.norm(n.q).relu()),
    "one layer twice": lambda n: n.proj(n.proj(n.q).tanh()),
    "with a dimension in front": lambda n: n.proj(n.q[None]),
    "made of a part": lambda n: n.proj(n.q[:1]),
}


@pytest.mark.parametrize("case", LATENTS)
@pytest.mark.parametrize("samples", [1, 3, 4])
def test_latents_through_layers(case, samples):
    check(queries(LATENTS[case]), *batch(samples, (2, 6)))


def test_latents_and_samples_through_one_layer():
    net = queries(lambda n: n.proj(n.q))
    net.function = lambda n, x: n.head((n.proj(x).mean(1)[:, None] * n.proj(n.q)).tanh().mean(1))
    for samples in (1, 3, 4):
        check(net, *batch(samples, (3, 6)))


UNMEASURED = {
    "quantized": (lambda n: n.other(n.q), fq.nn.QuantLinear(6, 6), r"other \(QuantLinear\) is given \[3, 6\], made of param"),
    "made and quantized": (lambda n: n.other(n.q * 1), fq.nn.QuantLinear(6, 6), r"other \(QuantLinear\) is given \[3, 6\], made of param"),
    "attention": (
        lambda n: n.other(n.q[None], n.q[None], n.q[None])[0],
        nn.MultiheadAttention(6, 2, batch_first=True),
        r"other \(MultiheadAttention\) is given \[1, 3, 6\], made of parameters alone",
    ),
    "dropout": (lambda n: F.dropout(n.q, 0.5), nn.Identity(), "given to dropout"),
    "in place": (lambda n: F.relu(n.q * 1, inplace=True), nn.Identity(), "given to relu"),
    "written to": (lambda n: torch.zeros(3, 6).copy_(n.q), nn.Identity(), "given to copy_"),
    "hook": (lambda n: (n.q * 1).register_hook(print) and n.q, nn.Identity(), "given to register_hook"),
}


@pytest.mark.parametrize("case", UNMEASURED)
@pytest.mark.parametrize("samples", [1, 3, 4])
def test_latents_where_they_cannot_be_measured(case, samples):
    function, other, message = UNMEASURED[case]
    with pytest.raises(fq.InputError, match=message):
        measure(queries(function, other=other), *batch(samples, (2, 6)))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_latents_in_an_autograd_function():
    for samples in (1, 3, 4):
        with pytest.raises(fq.InputError, match="made of parameters of the measured model"):
            measure(queries(lambda n: Double.apply(n.q * 1)), *batch(samples, (2, 6)))


def test_a_parameter_followed_and_in_an_autograd_function():
    net = queries(lambda n: Double.apply(n.q))
    net.function = lambda n, x: n.head((x * Double.apply(n.q)[0]).mean(1) + n.q[1])
    with pytest.raises(fq.InputError, match=r"q of the model \(Net\) was not seen where it is used: .* an autograd Function"):
        measure(net, *batch(1, (2, 6)))


def test_latents_in_custom_operators_and_scripted_functions():
    check(queries(lambda n: torch.ops.aten.mul(n.q * 1, n.q * 2)), *batch(4, (2, 6)))
    function = torch.jit.script(scripted)
    with pytest.raises(RuntimeError, match="operation failed in the TorchScript interpreter"):
        measure(queries(lambda n: function(n.q * 1, n.q * 1)), *batch(4, (2, 6)))


def scripted(a: torch.Tensor, b: torch.Tensor):
    return a * b


def tables():
    """Functions of positions and of tables that no sample has a part in, as many as there are samples or not."""
    positions = torch.arange(4)
    return {
        "positions": (lambda n, x: x + n.table(torch.arange(x.shape[1])), nn.Embedding(6, 6)),
        "positions, expanded": (lambda n, x: x + n.table(torch.arange(x.shape[1]).expand(len(x), -1)), nn.Embedding(6, 6)),
        "positions, repeated": (lambda n, x: x + n.table(torch.arange(x.shape[1]).repeat(len(x), 1)), nn.Embedding(6, 6)),
        "a matrix of distances": (
            lambda n, x: x + n.table((positions[:, None] - torch.arange(4)).abs()[: x.shape[1]]).mean(1),
            nn.Embedding(6, 6),
        ),
        "a linear map of positions": (lambda n, x: x + n.table(torch.arange(float(x.shape[1]), dtype=x.dtype)[:, None]), nn.Linear(1, 6)),
        "layers on a buffer": (lambda n, x: x + n.table(n.grid[: x.shape[1]]), nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6))),
        "a slope": (lambda n, x: x * (n.slope * torch.arange(1.0, 1 + x.shape[1], dtype=x.dtype))[:, None], None),
        "a slope on a table": (lambda n, x: x * (n.slope * n.steps[0][: x.shape[1]].to(x.dtype)), None),
        "a sample's own start": (lambda n, x: (x.sum(1) + n.table(torch.zeros(len(x), 6, dtype=x.dtype))).tanh()[:, None], nn.Linear(6, 6)),
    }


@pytest.mark.parametrize("case", tables())
@pytest.mark.parametrize("n,t", [(4, 3), (3, 3), (1, 3), (1, 1), (4, 4)])
def test_same_for_all_samples(case, n, t):
    function, table = tables()[case]
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head(function(n, x).tanh().mean(1)), head=nn.Linear(6, 5))
    if table is None:
        net.slope = nn.Parameter(torch.randn(1))
    else:
        net.table = table
    net.register_buffer("grid", torch.randn(4, 2))
    net.steps = [torch.randn(4, 1)]  # not registered
    check(net, *batch(n, (t, 6)))


def test_one_id_for_each_sample():
    """Though they are 0 to N - 1, they come with the samples."""
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head(n.table(x)), table=nn.Embedding(6, 6), head=nn.Linear(6, 5))
    check(net, torch.arange(4), batch(4)[1])


@pytest.mark.parametrize("n", [4, 3, 1])
def test_inside_of_a_checkpoint(n):
    """What repeats the forward pass does not show where a layer's input comes from."""
    net = Net(
        lambda n, x: n.head(checkpoint(lambda x: n.stem((x * 2).flip(1)) + n.table(torch.arange(3)), x, use_reentrant=False).mean(1)),
        stem=nn.Linear(6, 6),
        table=nn.Embedding(6, 6),
        head=nn.Linear(6, 5),
    )
    check(net, *batch(n, (3, 6)))


def test_a_table_in_a_quantized_layer():
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head(x + n.table(n.grid)).mean(1), table=fq.nn.QuantLinear(2, 6), head=nn.Linear(6, 5))
    net.register_buffer("grid", torch.randn(3, 2))
    with pytest.raises(fq.InputError, match=r"table \(QuantLinear\) is given \[3, 2\], the same for all samples"):
        measure(net, *batch(3, (3, 6)))


def simple():
    torch.manual_seed(0)
    net = Net(lambda n, x: n.head((n.stem(x) + n.p).tanh().mean(1)), stem=nn.Linear(6, 6), head=nn.Linear(6, 5))
    net.p = nn.Parameter(torch.randn(3, 6))
    return net


def test_gradients_of_all_parameters():
    """By torch.autograd.grad and by backward(inputs=), as by backward()."""
    net, (x, y) = simple(), batch(4, (3, 6))
    want = measure(net, x, y).total
    plain = [p.grad for p in net.parameters()]
    net.zero_grad()
    with fq.per_sample_grad_norms(net) as norms:
        grads = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    torch.testing.assert_close(norms.total, want)
    torch.testing.assert_close(list(grads), plain)
    with fq.per_sample_grad_norms(net) as norms:
        F.cross_entropy(net(x), y).backward(inputs=list(net.parameters()))
    torch.testing.assert_close(norms.total, want)
    torch.testing.assert_close([p.grad for p in net.parameters()], plain)


def test_gradients_of_some_parameters_are_refused():
    net, (x, y) = simple(), batch(4, (3, 6))
    x.requires_grad_(True)
    for inputs in ([net.p], [x], list(net.head.parameters())):
        with pytest.raises(fq.InputError, match="grad is to reach its inputs only"), fq.per_sample_grad_norms(net):
            torch.autograd.grad(F.cross_entropy(net(x), y), inputs)
        for backward in (torch.Tensor.backward, torch.autograd.backward):
            with pytest.raises(fq.InputError, match="backward is to reach its inputs only"), fq.per_sample_grad_norms(net):
                backward(F.cross_entropy(net(x), y), inputs=inputs)
    with pytest.raises(fq.InputError, match="made of parameters alone"), fq.per_sample_grad_norms(net):
        net(x)
        net.p.square().sum().backward()


def test_a_training_step_inside_of_the_block():
    net, (x, y) = simple(), batch(4, (3, 6))
    average, optimizer = simple(), torch.optim.AdamW(net.parameters())
    want = measure(net, x, y).total
    with fq.per_sample_grad_norms(net) as norms:
        optimizer.zero_grad()
        length = float(net.p.detach().norm())
        F.cross_entropy(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(parameter, 0.1)
    assert length
    torch.testing.assert_close(norms.total, want)


def test_an_average_with_gradients_says_what_to_do():
    net, average, (x, y) = simple(), simple(), batch(4, (3, 6))
    with pytest.raises(fq.InputError, match=r"before the model has seen its input.*torch\.no_grad"), fq.per_sample_grad_norms(net):
        average.p.data.lerp_(net.p, 0.1)
    with pytest.raises(fq.InputError, match=r"given to lerp_, .*torch\.no_grad"), fq.per_sample_grad_norms(net):
        F.cross_entropy(net(x), y).backward()
        average.p.data.lerp_(net.p, 0.1)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("function", [F.batch_norm, torch.batch_norm])
def test_statistics_of_the_batch(trained, function):
    def normalised(net, x):
        if function is torch.batch_norm:
            return torch.batch_norm(net.stem(x), net.p, net.p, None, None, True, 0.1, 1e-5, False)
        return F.batch_norm(net.stem(x), None, None, net.p, net.p, training=True)

    net = Net(lambda n, x: n.head(normalised(n, x)), stem=nn.Linear(6, 6), head=nn.Linear(6, 5))
    net.p = nn.Parameter(torch.randn(6), requires_grad=trained)
    with pytest.raises(fq.InputError, match="batch_norm takes the statistics of the batch"):
        measure(net, *batch(4, (6,)))


def test_windows_say_what_is_wrong():
    net = Net(lambda n, x: n.head(F.linear(x.reshape(-1, 6), n.p).view_as(x)).mean(1), head=nn.Linear(6, 5))
    net.p = nn.Parameter(torch.randn(6, 6))
    with pytest.raises(fq.InputError, match=r"given to linear together with \[12, 6\]; accepted: the 4 samples.*no windows"):
        measure(net, *batch(4, (3, 6)))
