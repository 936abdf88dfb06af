"""`linear_grad_sq_norm` and `conv_grad_sq_norm`: values of peers, what is left when there is nothing to multiply, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import fastqat as fq
from fastqat.testing import assert_same_bits, places

everywhere = pytest.mark.parametrize(("backend", "device"), places("grad_norm"))

LAYERS: dict[str, tuple[Callable[[bool], torch.nn.Module], tuple[int, ...]]] = {
    "linear": (lambda bias: torch.nn.Linear(7, 5, bias), (7,)),
    "tokens": (lambda bias: torch.nn.Linear(7, 5, bias), (4, 3, 7)),
    "1-D": (lambda bias: torch.nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias), (4, 11)),
    "2-D": (lambda bias: torch.nn.Conv2d(3, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1), bias=bias), (3, 9, 8)),
    "same": (lambda bias: torch.nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2), bias=bias), (3, 7, 6)),
    "3-D": (lambda bias: torch.nn.Conv3d(2, 3, (1, 2, 3), padding=(1, 0, 1), bias=bias), (2, 3, 4, 5)),
}


def ours(layer: Any, x: Tensor, grad_y: Tensor) -> Tensor:
    bias = layer.bias is not None
    if isinstance(layer, torch.nn.Linear):
        return fq.linear_grad_sq_norm(x, grad_y, bias=bias)
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return fq.conv_grad_sq_norm(x, grad_y, layer.kernel_size, **options, bias=bias)


def by_torch_func(layer: torch.nn.Module, x: Tensor, grad_y: Tensor) -> Tensor:
    """vmap of grad, in fp64."""
    layer, x, grad_y = layer.double(), x.double(), grad_y.double()

    def product(parameters: dict[str, Tensor], row: Tensor, grads: Tensor) -> Tensor:
        return (functional_call(layer, parameters, (row[None],))[0] * grads).sum()

    found = vmap(grad(product), in_dims=(None, 0, 0))(dict(layer.named_parameters()), x, grad_y)
    return sum((g.flatten(1).square().sum(1) for g in found.values()), torch.zeros(len(x), dtype=torch.float64)).detach()


@everywhere
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_values_of_torch_func(name: str, bias: bool, backend: str, device: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(bias), torch.randn(3, *shape)
    grad_y = torch.randn(layer(x).shape)
    with fq.use_backend(backend):
        got = ours(layer, x.to(device), grad_y.to(device)).cpu()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), by_torch_func(layer, x, grad_y), rtol=1e-5, atol=0)
    with fq.use_backend("reference"):
        exact = ours(layer, x.double(), grad_y.double())
    torch.testing.assert_close(exact, by_torch_func(layer, x, grad_y), rtol=1e-12, atol=0)


@everywhere
def test_without_inputs_the_bias_remains(backend: str, device: str) -> None:
    """No features, no channels, no pixels but the padding: Σ_o (Σ_t g)²."""
    x, grad_y = torch.zeros(3, 2, 0, device=device), torch.ones(3, 2, 4, device=device)
    with fq.use_backend(backend):
        for bias in (True, False):
            norms = [
                (fq.linear_grad_sq_norm(x[:, 0], grad_y[:, 0], bias=bias), 4.0),
                (fq.linear_grad_sq_norm(x, grad_y, bias=bias), 16.0),
                (fq.conv_grad_sq_norm(x.mT, grad_y[:, :, :2].mT, 1, bias=bias), 8.0),
                (fq.conv_grad_sq_norm(x, grad_y[:, :, :1], 2, padding=1, bias=bias), 2.0),
            ]
            for got, want in norms:
                assert torch.equal(got.cpu(), torch.full((3,), want * bias)), (got, want)


@everywhere
@pytest.mark.parametrize("positions", [1, 9, 60])
def test_autocast_changes_no_bit(positions: int, backend: str, device: str) -> None:
    """What is widened to fp32 is multiplied in fp32."""
    torch.manual_seed(0)
    x, grad_y = torch.randn(4, positions, 24, device=device), torch.randn(4, positions, 20, device=device)
    with fq.use_backend(backend):
        want = fq.linear_grad_sq_norm(x, grad_y)
        with torch.autocast(device, torch.bfloat16):
            assert_same_bits(fq.linear_grad_sq_norm(x, grad_y), want)


X, GRAD = torch.zeros(2, 3, 8), torch.zeros(2, 4, 8)
BAD_LINEAR: dict[str, tuple[tuple[Any, ...], str]] = {
    "a list": (([[1.0]], GRAD), "x is list; accepted: a tensor, such as torch.as_tensor"),
    "no gradient": ((X, None), "grad_y is NoneType; accepted: a tensor"),
    "integers": ((X.long(), X.long()), "x is torch.int64; accepted: torch.float32, torch.bfloat16, torch.float16, torch.float64"),
    "two dtypes": ((X, X.half()), r"grad_y torch.float16 on cpu; convert one: grad_y.to"),
    "two devices": ((X, X.to("meta")), "grad_y torch.float32 on meta; convert one"),
    "one dimension": ((X[0, 0], X[0, 0]), "at least 2 dimensions, the first is the batch"),
    "other positions": ((X, X[:, :2]), r"agree in all but the last dimension; got x \[2, 3, 8\], grad_y \[2, 2, 8\]"),
}


@pytest.mark.parametrize("case", BAD_LINEAR)
def test_bad_input_of_a_linear_layer(case: str) -> None:
    arguments, message = BAD_LINEAR[case]
    with pytest.raises(fq.InputError, match=message):
        fq.linear_grad_sq_norm(*arguments)


BAD_CONV: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "a list": (([1.0], GRAD, 1), {}, "x is list; accepted: a tensor"),
    "no kernel": ((X, GRAD, None), {}, "kernel_size is None; accepted: an integer ≥ 1, or 1 of them"),
    "a kernel in words": ((X, GRAD, "3"), {}, "kernel_size is '3'; accepted: an integer"),
    "half a pixel": ((X, GRAD, 1.5), {}, "kernel_size is 1.5; accepted: an integer"),
    "two sizes": ((X, GRAD, (3, 3)), {}, r"kernel_size is \(3, 3\); accepted: an integer ≥ 1, or 1 of them"),
    "no stride": ((X, GRAD, 1), {"stride": 0}, "stride is 0; accepted: an integer ≥ 1"),
    "padding": ((X, GRAD, 1), {"padding": "full"}, "padding is 'full'; accepted: 'valid', 'same', an integer"),
    "same with a stride": ((X, GRAD, 3), {"padding": "same", "stride": 2}, r"padding='same' needs stride 1; got stride \(2,\)"),
    "groups": ((X, GRAD, 1), {"groups": 2}, "groups is 2; it must divide the 3 channels of x and the 4 of grad_y"),
    "broken groups": ((X, GRAD, 1), {"groups": 1.0}, "groups is 1.0; it must divide"),
    "other output": ((X, GRAD, 3), {}, r"grad_y must be \[2, 4, 6\] for this x and this kernel; got x \[2, 3, 8\], grad_y \[2, 4, 8\]"),
    "too many dimensions": ((X[:, :, None, None, None], GRAD, 1), {}, r"x is \[2, 3, 1, 1, 1, 8\]; accepted: 3 to 5 dimensions"),
}


@pytest.mark.parametrize("case", BAD_CONV)
def test_bad_input_of_a_convolution(case: str) -> None:
    arguments, options, message = BAD_CONV[case]
    with pytest.raises(fq.InputError, match=message):
        fq.conv_grad_sq_norm(*arguments, **options)


def test_compiles_whole() -> None:
    torch.manual_seed(0)
    x, grad_y = torch.randn(3, 4, 8, 8), torch.randn(3, 6, 8, 8)

    def norms(x: Tensor, grad_y: Tensor) -> Tensor:
        return fq.conv_grad_sq_norm(x, grad_y, 3, padding=1) + fq.linear_grad_sq_norm(x, grad_y[:, :4])

    assert_same_bits(torch.compile(norms, fullgraph=True, backend="eager")(x, grad_y), norms(x, grad_y))
