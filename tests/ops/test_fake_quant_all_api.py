"""fake_quantize_all as a torch function: some gradients only, bad input, opcheck, compile, torch.func, CUDA graphs."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

import fastqat as fq
from fastqat import testing
from fastqat._bench.case import needs_compiler
from fastqat.ops.fake_quant_all import op
from fastqat.testing import assert_same_bits

PLACES = testing.places("fake_quant_all")
everywhere = pytest.mark.parametrize(("backend", "device"), PLACES)
native = pytest.mark.skipif(("cpu", "cpu") not in PLACES, reason="fastqat._C is not built")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def weights(device: str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
    """Three weights and their scales, leaves that want gradients."""
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in ((4, 3), (5,), (2, 3, 2))]
    return xs, [torch.full((1,), 0.1 * (i + 1), device=device, requires_grad=True) for i in range(3)]


@everywhere
def test_gradients_of_some_only(backend: str, device: str) -> None:
    xs, scales = weights(device)
    xs[0].requires_grad_(False)
    scales[1].requires_grad_(False)
    xs[2].requires_grad_(False)
    scales[2].requires_grad_(False)
    zero_points = [None, torch.ones(1, device=device, requires_grad=True), torch.ones(1, device=device, dtype=torch.int32)]
    with fq.use_backend(backend):
        ys = fq.fake_quantize_all(xs, scales, zero_points, qmin=-2, qmax=1)
        assert [y.requires_grad for y in ys] == [True, True, False]
        (ys[0].sum() + ys[1].sum()).backward()
    found = [t.grad is not None for t in (*xs, *scales, zero_points[1])]
    assert found == [False, True, False, True, False, False, True]
    with torch.no_grad():
        assert not any(y.requires_grad for y in fq.fake_quantize_all(xs, scales, qmin=-2, qmax=1))


@everywhere
def test_results_that_nothing_used_cost_nothing(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    xs, scales = weights(device)
    asked: list[int] = []
    original = op.fake_quant_all_backward
    monkeypatch.setattr(op, "fake_quant_all_backward", lambda grads, *rest: (asked.append(len(grads)), original(grads, *rest))[1])
    with fq.use_backend(backend):
        ys = fq.fake_quantize_all(xs, scales, qmin=-2, qmax=1)
        ys[1].sum().backward()
    assert asked == [1]
    assert [t.grad is not None for t in (*xs, *scales)] == [False, True, False, False, True, False]


def test_results_are_tensors_of_their_own() -> None:
    xs, scales = weights()
    ys = fq.fake_quantize_all(xs, scales, qmin=-8, qmax=7)
    assert len({y.untyped_storage().data_ptr() for y in ys}) == 3 and not any(y._is_view() for y in ys)
    ys[0].mul_(2)  # in place, like any result
    (ys[0].sum() + ys[1].sum() + ys[1].square().sum() + ys[2].sum()).backward()
    got = [t.grad for t in (*xs, *scales)]
    for t in (*xs, *scales):
        t.grad = None
    want = [fq.fake_quantize(x, s, qmin=-8, qmax=7) for x, s in zip(xs, scales, strict=True)]
    (2 * want[0].sum() + want[1].sum() + want[1].square().sum() + want[2].sum()).backward()
    for grad, t in zip(got, (*xs, *scales), strict=True):
        assert_same_bits(grad, t.grad)


def test_backward_twice_and_double_backward() -> None:
    xs, scales = weights()
    ys = fq.fake_quantize_all(xs, scales, qmin=-8, qmax=7)
    loss = sum(y.sum() for y in ys)
    first = torch.autograd.grad(loss, scales, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, scales), strict=True))
    ys = fq.fake_quantize_all(xs, scales, qmin=-8, qmax=7)
    grads = torch.autograd.grad(sum(y.square().sum() for y in ys), xs, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again|once_differentiable"):
        grads[0].sum().backward()


def test_changing_x_before_the_backward_is_noticed() -> None:
    xs, scales = weights()
    ys = fq.fake_quantize_all(xs, scales, qmin=-8, qmax=7)
    with torch.no_grad():
        xs[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys[0].sum().backward()


@pytest.mark.parametrize(("kwargs", "error", "message"), [
    ({"xs": torch.ones(2, 3)}, TypeError, "xs is Tensor; accepted: a list of tensors"),
    ({"scales": [torch.ones(1)]}, ValueError, "scales has 1 entries for 2 tensors"),
    ({"zero_points": torch.ones(2)}, TypeError, "zero_points is Tensor"),
    ({"qmin": [-8]}, ValueError, "qmin has 1 values for 2 tensors"),
    ({"axis": [None, 5]}, ValueError, "tensor 1: axis 5 is out of range"),
    ({"scales": [torch.ones(1), torch.ones(3)]}, ValueError, "tensor 1: scale has shape"),
    ({"xs": [torch.ones(2), torch.ones(2, dtype=torch.int8)]}, TypeError, "tensor 1: x is torch.int8"),
    ({"qmax": [7, -9]}, ValueError, r"tensor 1: integer range \[-8, -9\]"),
    ({"grad_factors": torch.ones(2)}, TypeError, "grad_factors has a Tensor; accepted: None"),
    ({"grad_factors": [1.0, "2"]}, TypeError, "grad_factors has a str; accepted: None"),
    ({"grad_factors": {}}, TypeError, "grad_factors has a dict; accepted: None"),
    ({"semantics": "round"}, ValueError, "tensor 0: semantics"),
    ({"xs": [torch.ones(2, device=d) for d in ("cpu", "meta")], "scales": [torch.ones(1, device=d) for d in ("cpu", "meta")]}, ValueError,
     "accepted: one device"),
])  # fmt: skip
def test_bad_input(kwargs: dict, error: type[Exception], message: str) -> None:
    arguments = {"xs": [torch.ones(2), torch.ones(2)], "scales": [torch.ones(1), torch.ones(1)], "qmin": -8, "qmax": 7, **kwargs}
    with pytest.raises(error, match=message):
        fq.fake_quantize_all(arguments.pop("xs"), arguments.pop("scales"), arguments.pop("zero_points", None), **arguments)


@pytest.mark.parametrize("factors", [None, 1, [None, 1.0, None]], ids=["none", "one", "list"])
def test_grad_factors_of_none(factors: object) -> None:
    xs, scales = weights()
    want = torch.autograd.grad(sum(y.sum() for y in fq.fake_quantize_all(xs, scales, qmin=-2, qmax=1)), scales)
    got = torch.autograd.grad(sum(y.sum() for y in fq.fake_quantize_all(xs, scales, qmin=-2, qmax=1, grad_factors=factors)), scales)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_an_empty_list() -> None:
    assert fq.fake_quantize_all([], [], qmin=-8, qmax=7) == []


@native
def test_native_operators_check_their_lists() -> None:
    x, s = torch.ones(4), torch.ones(1)
    numbers = [1, 1, 1, 4, -8, 7, 0]
    call = torch.ops.fastqat_native.fake_quant_all
    with pytest.raises(RuntimeError, match="every list must have one entry per tensor"):
        call([x, x], [s], [None], [torch.empty(4)], numbers)
    with pytest.raises(RuntimeError, match="must have the size and dtype of its x"):
        call([x], [s], [None], [torch.empty(3)], numbers)
    with pytest.raises(RuntimeError, match="5 elements|not 5"):
        call([x], [s], [None], [torch.empty(4)], [1, 1, 1, 5, -8, 7, 0])


def test_fp64_takes_all_to_the_reference() -> None:
    xs = [torch.randn(3, dtype=torch.float64), torch.randn(3)]
    scales = [torch.ones(1, dtype=torch.float64), torch.ones(1)]
    assert [y.dtype for y in fq.fake_quantize_all(xs, scales, qmin=-8, qmax=7)] == [torch.float64, torch.float32]
    if ("cpu", "cpu") in PLACES:
        with fq.use_backend("cpu"), pytest.raises(fq.BackendError, match="reference backend only"):
            fq.fake_quantize_all(xs, scales, qmin=-8, qmax=7)


@everywhere
def test_opcheck(backend: str, device: str) -> None:
    xs = [torch.randn(4, 3, device=device), torch.randn(2, 3, 4, 5, device=device).permute(0, 2, 3, 1), torch.randn(0, 3, device=device)]
    scales = [torch.full((n,), 0.1, device=device) for n in (4, 1, 1)]
    zero_points = [torch.ones(4, device=device), None, None]
    codes = [number for axis in (0, None, None) for number in op.pack((-8, 7, axis, None, "div"))]
    with fq.use_backend(backend):
        torch.library.opcheck(op.fake_quant_all, (xs, scales, zero_points, codes))
        grads, needs = [torch.randn_like(x) for x in xs], [True, True, True, False, False, False]
        torch.library.opcheck(op.fake_quant_all_backward, (grads, xs, scales, zero_points, codes, [0.5, 1.0, 2.0], needs))


inductor = pytest.param("inductor", marks=pytest.mark.skipif(needs_compiler() is not None, reason=str(needs_compiler())))


@pytest.mark.parametrize("backend", ["aot_eager", inductor])
def test_compiles_whole(backend: str) -> None:
    torch._dynamo.reset()
    xs, scales = weights()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(lambda: fq.fake_quantize_all(xs, scales, qmin=-8, qmax=[7, 3, 1]), fullgraph=True, backend=counter)
    want = torch.autograd.grad(sum(y.square().sum() for y in fq.fake_quantize_all(xs, scales, qmin=-8, qmax=[7, 3, 1])), [*xs, *scales])
    for _ in range(2):
        got = torch.autograd.grad(sum(y.square().sum() for y in compiled()), [*xs, *scales])
        for a, b in zip(got, want, strict=True):
            assert_same_bits(a, b)
    assert counter.frame_count == 1


def test_transforms_of_torch_func() -> None:
    xs, scales = weights()
    xs, scales = [x.detach() for x in xs], [s.detach() for s in scales]

    def loss(scales: list[Tensor]) -> Tensor:
        return sum(y.square().sum() for y in fq.fake_quantize_all(xs, scales, qmin=-8, qmax=7))

    got = torch.func.grad(loss)(scales)
    leaves = [s.clone().requires_grad_() for s in scales]
    for a, b in zip(got, torch.autograd.grad(loss(leaves), leaves), strict=True):
        assert_same_bits(a, b)
    batch = torch.stack([xs[0], -xs[0]])
    assert_same_bits(
        torch.vmap(lambda x: fq.fake_quantize_all([x], scales[:1], qmin=-8, qmax=7)[0])(batch)[0],
        fq.fake_quantize(xs[0], scales[0], qmin=-8, qmax=7),
    )


def test_pickling_and_fake_tensors() -> None:
    xs, scales = weights()
    ys = [y.detach() for y in fq.fake_quantize_all(xs, scales, qmin=-8, qmax=7)]
    assert all(torch.equal(a, b) for a, b in zip(pickle.loads(pickle.dumps(ys)), ys, strict=True))
    mode = FakeTensorMode()
    fake_xs, fake_scales = ([mode.from_tensor(t.detach()) for t in tensors] for tensors in (xs, scales))
    with mode:
        fakes = fq.fake_quantize_all(fake_xs, fake_scales, qmin=-8, qmax=7)
    assert [tuple(y.shape) for y in fakes] == [tuple(x.shape) for x in xs]


@on_cuda
def test_cuda_graph() -> None:
    xs, scales = weights("cuda")

    def step() -> list[Tensor]:
        ys = fq.fake_quantize_all(xs, scales, qmin=-8, qmax=7)
        return [*ys, *torch.autograd.grad(sum(y.square().sum() for y in ys), [*xs, *scales])]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for factor in (1.0, -3.0):
        with torch.no_grad():
            for x in xs:
                x.mul_(factor)
        fq.fake_quantize_all([torch.ones(100, device="cuda")], [torch.ones(1, device="cuda")], qmin=-8, qmax=7)
        graph.replay()
        for got, want in zip(results, step(), strict=True):
            assert_same_bits(got, want)
