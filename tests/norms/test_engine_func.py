"""Modules that torch.func runs again for each sample: RNNs, parametrized layers, several outputs; and what it cannot serve."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastqat as fq

from .per_sample import assert_close, check, measure
from .test_engine import Net, batch
from .test_engine_users import compare, pair


def test_users_hooks_are_run_again():
    torch.manual_seed(0)
    model = Net(lambda n, x: n.head(n.pair(x, x.sin())), pair=nn.Bilinear(6, 6, 6), head=nn.Linear(6, 5))
    model.pair.register_forward_hook(lambda module, args, y: y * torch.arange(6.0))
    model.pair.register_forward_pre_hook(lambda module, args: (args[0] * 3, args[1]))
    compare(model, *batch(4, (6,)), unknown="func")


class Tagger(nn.Module):
    """An RNN whose outputs and last states are all used, with states of its own to begin with."""

    def __init__(self, kind, states=False, **options):
        super().__init__()
        self.rnn = kind(6, 6, batch_first=True, **options)
        self.states, self.head = states, nn.Linear(6 * (2 if self.rnn.bidirectional else 1), 5)

    def forward(self, x):
        first = x.new_ones(self.rnn.num_layers * (2 if self.rnn.bidirectional else 1), len(x), 6) * x.mean((1, 2))[:, None]
        given = ((first, first.sin()) if isinstance(self.rnn, nn.LSTM) else first,) if self.states else ()
        y, last = self.rnn(x, *given)
        last = last[0] if isinstance(last, tuple) else last
        return self.head(y.mean(1)) + last.mean((0, 2))[:, None].expand(-1, 5).cumsum(1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"num_layers": 2}),
        (nn.LSTM, {"states": True}),
        (nn.GRU, {"bidirectional": True}),
        (nn.GRU, {"num_layers": 3, "states": True}),
        (nn.RNN, {"bias": False}),
    ],
)
def test_rnn_by_func(kind, options):
    torch.manual_seed(0)
    model = Tagger(kind, **options)
    check(model, *batch(3, (4, 6)), unknown="func")
    assert all(one is other for one, other in zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True))
    with pytest.raises(fq.InputError, match=r"rnn \(\w+\) has no rule"):
        measure(model, *batch(3, (4, 6)))


def test_rnn_with_samples_in_dimension_1():
    torch.manual_seed(0)
    forward = lambda n, x: n.head(n.rnn(x.transpose(0, 1))[0].transpose(0, 1).mean(1))  # noqa: E731
    model = Net(forward, rnn=nn.LSTM(6, 6), head=nn.Linear(6, 5))
    check(model, *batch(3, (4, 6)), unknown="func")
    with pytest.raises(fq.InputError, match="as many positions as samples"):
        measure(model, *batch(4, (4, 6)), unknown="func")


def test_rnn_that_is_refused():
    single = Net(lambda n, x: n.rnn(x)[0], rnn=nn.GRU(6, 5))
    with pytest.raises(fq.InputError, match="a batch of sequences"):
        measure(single, *batch(3, (6,)), unknown="func")
    drops = Tagger(nn.LSTM, num_layers=2, dropout=0.5)
    with pytest.raises(fq.InputError, match="draws a dropout mask"):
        measure(drops, *batch(3, (4, 6)), unknown="func")
    check(drops.eval(), *batch(3, (4, 6)), unknown="func")


def test_several_outputs_of_which_one_is_not_used():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x):
            y = torch.einsum("ni,oi->no", x, self.weight)
            return {"a": y.tanh(), "b": (y.sin(), y.cos()), "none": None}

    torch.manual_seed(0)
    for forward in (lambda n, x: n.head(n.body(x)["a"]), lambda n, x: n.head(n.body(x)["b"][0] * n.body(x * 2)["a"])):
        check(Net(forward, body=Heads(), head=nn.Linear(6, 5)), *batch(4, (6,)), unknown="func")


def test_func_notices_what_mixes_the_samples():
    class Centred(nn.Bilinear):
        def forward(self, x, z):
            return super().forward(x - x.mean(0), z)

    torch.manual_seed(0)
    model = Net(lambda n, x: n.pair(x, x), pair=Centred(6, 6, 5))
    with pytest.raises(fq.InputError, match="something else of a sample alone"):
        measure(model, *batch(4, (6,)), unknown="func")


def test_parametrized_layers_by_func():
    layers = {
        "weight_norm": parametrizations.weight_norm(nn.Linear(6, 6)),
        "older weight_norm": nn.utils.weight_norm(nn.Linear(6, 6)),
        "orthogonal": parametrizations.orthogonal(nn.Linear(6, 6)),
        "convolution": parametrizations.weight_norm(nn.Conv1d(1, 1, 3, padding=1)),
    }
    for name, layer in layers.items():
        torch.manual_seed(0)
        front = nn.Unflatten(1, (1, 6)) if name == "convolution" else nn.Identity()
        model = nn.Sequential(front, layer, nn.Flatten(), nn.Linear(6, 5))
        x, y = batch(4, (6,))
        compare(model, x, y, unknown="func")
        assert list(measure(model, x, y, unknown="func", per_layer=True).layers) == ["1", "3"]
        with pytest.raises(fq.InputError, match=r"1 \(\w+\) has no rule"):
            measure(model, x, y)


def test_parametrized_layers_that_are_refused():
    model, (x, y) = pair(parametrizations.spectral_norm(nn.Linear(6, 6))), batch(4, (6,))
    before = {name: value.clone() for name, value in model.eval().state_dict().items()}
    compare(model, x, y, unknown="func")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(fq.InputError, match="changes parametrizations.weight.0._u"):
        measure(model.train(), x, y, unknown="func")
    model = pair(parametrizations.weight_norm(nn.Linear(6, 6)))
    with pytest.raises(fq.InputError, match="cached"), parametrize.cached():
        measure(model, x, y, unknown="func")
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    parametrizations.weight_norm(attention.out_proj)
    with pytest.raises(fq.InputError, match=r"\(MultiheadAttention\) has no rule"):
        measure(Net(lambda n, x: n.a(x, x, x)[0].mean(1), a=attention), *batch(3, (4, 6)))


def test_bias_of_a_parametrized_layer_alone():
    model = pair(parametrizations.weight_norm(nn.Linear(6, 6))).requires_grad_(False)
    model[0].bias.requires_grad_(True)
    x, y = batch(4, (6,))
    norms = measure(model, x, y)
    want = [
        torch.autograd.grad(F.cross_entropy(model(row[None]), label[None]), model[0].bias)[0].norm()
        for row, label in zip(x, y, strict=True)
    ]
    assert_close(norms.total, torch.stack(want).double())
