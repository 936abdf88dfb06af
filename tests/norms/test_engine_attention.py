"""`nn.MultiheadAttention` and torch's transformer layers: the watched forward equals torch's, and the norms the oracle's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastqat as fq
from fastqat.testing import pairwise

from .per_sample import assert_close, check, measure, norm_of, sample_grads
from .test_engine import Net, batch

SAMPLES, LENGTH, KEYS, WIDTH = 3, 4, 5, 8
FULL_MASK = torch.randn(LENGTH, KEYS, generator=torch.Generator().manual_seed(3))
CAUSAL = nn.Transformer.generate_square_subsequent_mask(LENGTH)


class Attend(nn.Module):
    """Attention over x, or from x to what is made of x, with a linear head."""

    def __init__(self, cross, masks=(), need_weights=False, separate=False, **options):
        super().__init__()
        sizes = {"kdim": 6, "vdim": 7} if separate else {}
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **sizes, **options)
        for name, p in self.attention.named_parameters():
            nn.init.normal_(p, std=0.5) if "bias" in name else None
        self.cross, self.masks, self.need_weights = cross, masks, need_weights
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        key = value = x
        if self.cross:
            source = torch.cat([x, x[:, :1].cos()], 1)
            key, value = source[..., : self.attention.kdim], source[..., : self.attention.vdim].sin()
            key = key if self.attention._qkv_same_embed_dim is False else source
        options = {"need_weights": self.need_weights}
        length = key.shape[1]
        if "mask" in self.masks:
            options["attn_mask"] = FULL_MASK[:, :length].to(x.dtype)
        if "bool" in self.masks:
            options["attn_mask"] = FULL_MASK[:, :length] > 1
        if "heads" in self.masks:
            options["attn_mask"] = FULL_MASK[:, :length].to(x.dtype).expand(len(x) * 2, -1, -1)
        if "causal" in self.masks:
            options |= {"attn_mask": F.pad(CAUSAL, (0, length - LENGTH)).to(x.dtype), "is_causal": length == LENGTH}
        if "padding" in self.masks:
            options["key_padding_mask"] = torch.arange(length).expand(len(x), -1) == length - 1
        y, weights = self.attention(x, key, value, **options)
        return self.head(y.sum(1)) + (0 if weights is None else weights.square().sum().tanh())


CASES = pairwise(
    cross=[False, True],
    masks=[(), ("mask",), ("bool",), ("heads",), ("causal",), ("padding",), ("bool", "padding")],
    need_weights=[False, True],
    options=[{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"add_bias_kv": True, "add_zero_attn": True}],
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in case.values()))
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_attention(case):
    torch.manual_seed(0)
    model, (x, y) = Attend(case["cross"], case["masks"], case["need_weights"], **case["options"]), batch(SAMPLES, (LENGTH, WIDTH))
    plain = model(x)
    with fq.per_sample_grad_norms(model):
        watched = model(x)
        F.cross_entropy(watched, y).backward()
    torch.testing.assert_close(watched, plain)
    if not case["need_weights"]:  # the weights of all samples are in every sample's loss
        check(model, x, y)


@pytest.mark.parametrize("bias", [True, False])
def test_own_sizes_of_key_and_value(bias):
    torch.manual_seed(0)
    model, (x, y) = Attend(True, separate=True, bias=bias), batch(SAMPLES, (LENGTH, WIDTH))
    check(model, x, y)


def test_averaged_and_single_attention_weights():
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(WIDTH, 2, batch_first=True), torch.randn(SAMPLES, LENGTH, WIDTH)
    for average in (True, False):
        want = layer(x, x, x, average_attn_weights=average)
        with fq.per_sample_grad_norms(layer):
            got = layer(x, x, x, average_attn_weights=average)
            got[0].sum().backward()
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


def test_samples_in_dimension_1():
    """batch_first=False inside a model that turns its tokens for it, and the case that cannot be told from a wrong layout."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, 2)

    def forward(net, x):
        turned = net.stem(x).transpose(0, 1)
        return net.head(net.attention(turned, turned, turned, need_weights=False)[0].transpose(0, 1).mean(1))

    net = Net(forward, stem=nn.Linear(WIDTH, WIDTH), attention=attention, head=nn.Linear(WIDTH, 5))
    check(net, *batch(SAMPLES, (LENGTH, WIDTH)))
    with pytest.raises(fq.InputError, match="as many positions as samples"):
        measure(net, *batch(LENGTH, (LENGTH, WIDTH)))
    with pytest.raises(fq.InputError, match="a batch of sequences"):
        measure(Net(lambda n, x: n.a(x, x, x)[0], a=attention), *batch(SAMPLES, (WIDTH,)))


def test_frozen_in_part():
    torch.manual_seed(0)
    model, (x, y) = Attend(True), batch(SAMPLES, (LENGTH, WIDTH))
    model.attention.in_proj_bias.requires_grad_(False)
    model.attention.out_proj.weight.requires_grad_(False)
    assert_close(measure(model, x, y).total, norm_of(sample_grads(model, x, y)))


def test_called_twice():
    torch.manual_seed(0)

    def forward(net, x):
        x = net.attention(x, x, x)[0]
        return net.head(net.attention(x.tanh(), x, x.sin())[0].mean(1))

    check(Net(forward, attention=nn.MultiheadAttention(WIDTH, 2, batch_first=True), head=nn.Linear(WIDTH, 5)), *batch(3, (4, WIDTH)))


@pytest.mark.parametrize(("norm_first", "training"), [(True, True), (False, False)])
def test_transformer_encoder(norm_first, training):
    """In eval mode torch would run each layer as one operation, and with padding on nested tensors."""
    pytest.importorskip("fastqat.norms.rules.normalization")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    def forward(net, x):
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[:, -1] = True
        return net.head(net.encoder(x, src_key_padding_mask=padding)[:, 0])

    net = Net(forward, encoder=encoder, head=nn.Linear(WIDTH, 5)).train(training)
    check(net, *batch(SAMPLES, (LENGTH, WIDTH)))


def test_transformer_with_decoder():
    pytest.importorskip("fastqat.norms.rules.normalization")
    torch.manual_seed(0)
    transformer = nn.Transformer(WIDTH, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    net = Net(lambda n, x: n.head(n.transformer(x, x.cos()[:, :3])[:, 0]), transformer=transformer, head=nn.Linear(WIDTH, 5))
    check(net, *batch(SAMPLES, (LENGTH, WIDTH)))


def test_dropout_is_drawn_and_the_module_is_left_as_it_was():
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(WIDTH, 2, dropout=0.9, batch_first=True), torch.randn(SAMPLES, LENGTH, WIDTH)
    twin = copy.deepcopy(layer)
    for need_weights in (True, False):
        with fq.per_sample_grad_norms(layer) as norms:
            y = layer(x, x, x, need_weights=need_weights)[0]
            y.sum().backward()
        assert norms.total.isfinite().all() and not torch.equal(y, twin.eval()(x, x, x)[0])
    assert "forward" not in vars(layer)


class Turned(nn.Module):
    """Torch's transformer layers with the samples in dimension 1, in a model that turns its tokens for them."""

    def __init__(self, decoder):
        super().__init__()
        options = {"dropout": 0.0, "norm_first": decoder}
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.decoder = (
            nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 2, 16, **options), 1, nn.LayerNorm(WIDTH)) if decoder else None
        )
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        turned = x.transpose(0, 1)
        y = self.encoder(turned)
        y = y if self.decoder is None else self.decoder(turned[:2].sin(), y)
        return self.head(y.transpose(0, 1).mean(1))


@pytest.mark.parametrize("decoder", [False, True])
def test_transformer_layers_with_samples_in_dimension_1(decoder):
    torch.manual_seed(0)
    model = Turned(decoder)
    check(model, *batch(SAMPLES, (LENGTH, WIDTH)))
    check(model.eval(), *batch(1, (LENGTH, WIDTH)))
    with pytest.raises(fq.InputError, match="as many positions as samples"):
        measure(model, *batch(LENGTH, (LENGTH, WIDTH)))
    for module in model.encoder.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.requires_grad_(False)
    with pytest.raises(fq.InputError, match="as many positions as samples"):
        measure(model, *batch(LENGTH, (LENGTH, WIDTH)))
