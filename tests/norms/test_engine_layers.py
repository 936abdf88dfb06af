"""The rules of multiplying layers in every variant, by shapes that hypothesis draws, against the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastqat._errors import InputError
from fastqat.norms import find_rule

from .per_sample import assert_close, check, measure, norm_of, sample_grads

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def squares(y, target):
    """A loss for outputs of any shape: the mean over the samples of what each has alone."""
    return (y.flatten(1).tanh() * torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype)).square().sum(1).mean()


def run(layer, x):
    check(layer, x, torch.zeros(len(x)), squares)


@st.composite
def convolutions(draw):
    dims, groups = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    numbers = lambda least, most: tuple(draw(st.integers(least, most)) for _ in range(dims))  # noqa: E731
    kernel, stride, dilation = numbers(1, 3), numbers(1, 4), numbers(1, 2)
    padding = draw(st.sampled_from(["same", "valid", "numbers"]))
    if padding == "numbers":
        padding = numbers(0, 2)
    elif padding == "same":
        stride = (1,) * dims
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    channels, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    options = {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding, "bias": draw(st.booleans())}
    layer = CONVS[dims](channels, outputs, kernel, padding_mode=mode, **options)
    return layer, torch.randn(draw(st.integers(1, 3)), channels, *numbers(5, 7))


@settings(max_examples=30, deadline=None)
@given(convolutions())
def test_convolutions(case):
    run(*case)


@st.composite
def transposed(draw):
    dims, groups = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    numbers = lambda least, most: tuple(draw(st.integers(least, most)) for _ in range(dims))  # noqa: E731
    kernel, stride = numbers(1, 3), numbers(1, 3)
    extra = tuple(draw(st.integers(0, s - 1)) for s in stride)
    options = {"stride": stride, "output_padding": extra, "groups": groups, "bias": draw(st.booleans()), "dilation": numbers(1, 2)}
    layer = TRANSPOSED[dims](2 * groups, groups, kernel, padding=numbers(0, 0), **options)
    return layer, torch.randn(2, 2 * groups, *numbers(2, 4))


@settings(max_examples=15, deadline=None)
@given(transposed())
def test_transposed_convolutions(case):
    run(*case)


def test_transposed_convolution_with_padding_and_the_one_that_is_refused():
    run(nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2), torch.randn(3, 4, 5, 6))
    with pytest.raises(InputError, match="output_padding"):
        measure(nn.ConvTranspose1d(2, 2, 3, stride=1, dilation=3, output_padding=1), torch.randn(2, 2, 5), torch.zeros(2), squares)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias):
    run(nn.Linear(6, 4, bias=bias), torch.randn(3, *shape))


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 4), torch.randn(3, 2, 6)),
        (nn.Conv2d(4, 6, 3, groups=2), torch.randn(3, 4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3), torch.randn(3, 4, 5)),
    ],
    ids=["linear", "conv", "transposed"],
)
def test_weight_or_bias_alone(layer, x, name):
    for parameter in ("weight", "bias"):
        getattr(layer, parameter).requires_grad_(parameter == name)
    assert_close(measure(layer, x, torch.zeros(3), squares).total, norm_of(sample_grads(layer, x, torch.zeros(3), squares)))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 4), torch.randn(3, 2, 6)),
        (nn.Conv2d(4, 6, (3, 2), stride=2, groups=2, padding=1, padding_mode="reflect"), torch.randn(3, 4, 5, 6)),
        (nn.Conv1d(4, 6, 4, padding="same"), torch.randn(3, 4, 7)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), torch.randn(3, 4, 3, 4)),
    ],
    ids=["linear", "conv", "same", "transposed"],
)
def test_gradients_that_the_rules_form(layer, x):
    """`Rule.grads`, of all parameters and of each alone, in fp64 from fp32 autograd's inputs."""
    layer = layer.double()
    x = x.double()
    y = layer(x)
    grad_y = torch.randn_like(y)
    rule = find_rule(layer)
    for names in ({"weight", "bias"}, {"weight"}, {"bias"}):
        grads = rule.grads(layer, x, grad_y, frozenset(names))
        assert set(grads) == names
        for name in names:
            want = [torch.autograd.grad(layer(row[None]), getattr(layer, name), g[None])[0] for row, g in zip(x, grad_y, strict=True)]
            torch.testing.assert_close(grads[name], torch.stack(want))


def test_layouts():
    """Channels-last inputs and gradients, expanded gradients, sliced inputs."""
    layer = nn.Conv2d(4, 6, 3, padding=1)
    x = torch.randn(3, 4, 6, 6)
    want = norm_of(sample_grads(layer, x, torch.zeros(3), squares))
    assert_close(measure(layer, x.to(memory_format=torch.channels_last), torch.zeros(3), squares).total, want)
    wide = torch.randn(3, 8, 6, 6)
    wide[:, ::2] = x
    assert_close(measure(layer, wide[:, ::2], torch.zeros(3), squares).total, want)
    flat = lambda y, target: y.sum()  # noqa: E731  # its gradient is one number, expanded
    got = measure(layer, x, torch.zeros(3), flat, loss_reduction="sum")
    assert_close(got.total, norm_of(sample_grads(layer, x, torch.zeros(3), flat)))
