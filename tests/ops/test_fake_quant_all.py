"""fake_quantize_all: one call against one call per tensor, on every backend; autograd with some inputs, some outputs; as an operator."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

import fastqat as fq
from fastqat import testing
from fastqat.ops.fake_quant import reference
from fastqat.ops.fake_quant_all import op, table
from fastqat.testing import FakeQuantCase, FakeQuantInputs, assert_same_bits, assert_sum_close

PLACES = testing.places("fake_quant_all")
everywhere = pytest.mark.parametrize(("backend", "device"), PLACES)
native = pytest.mark.skipif(("cpu", "cpu") not in PLACES, reason="fastqat._C is not built")
triton = pytest.mark.skipif(not any(backend == "triton" for backend, _ in PLACES), reason="no Triton, or started without its interpreter")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rows shorter and longer than a tile, of whole vectors and not; the last two are weights and runs between outer dimensions.
SHAPES = [
    (1, 1, 1, 1),
    (3, 0, 2, 5),
    (1, 1, 1, 4097),
    (2, 3, 1, 1023),
    (65, 2, 4, 4),
    (2, 1024, 1, 2),
    (1, 2, 3, 2731),
    (8, 16, 3, 3),
    (3, 5, 8, 8),
]
CASES = [
    FakeQuantCase(**case)
    for case in testing.pairwise(
        shape=SHAPES,
        granularity=list(testing.GRANULARITIES),
        dtype=DTYPES,
        layout=testing.LAYOUTS,
        zero_point=["none", "inside", "outside", "int32"],
        values=["hard", "random", "nan"],
        semantics=["div", "reciprocal"],
        bits=[2, 4, 8],
        signed=[True, False],
    )
]


def cases_for(backend: str, device: str, cases: Sequence[FakeQuantCase] = CASES) -> list[FakeQuantCase]:
    """Triton's interpreter has no bfloat16, and takes its time for each of the others: it gets every fifth."""
    return list(cases) if backend != "triton" or device == "cuda" else [case for case in cases if case.dtype != torch.bfloat16][::5]


class Call:
    """Arguments of one call for many inputs: fresh leaves, and a factor for each."""

    def __init__(self, inputs: Sequence[FakeQuantInputs]):
        grids = [each.grid for each in inputs]
        self.xs = [each.x.detach().requires_grad_() for each in inputs]
        self.scales = [grid.scale.clone().requires_grad_() for grid in grids]
        self.zero_points = [
            None if g.zero_point is None else g.zero_point.clone().requires_grad_(g.zero_point.is_floating_point()) for g in grids
        ]
        self.factors = [0.1 * (i + 1) for i in range(len(grids))]
        self.options = {name: [getattr(grid, name) for grid in grids] for name in ("qmin", "qmax", "axis", "group_size", "semantics")}

    def at_once(self) -> list[Tensor]:
        return fq.fake_quantize_all(self.xs, self.scales, self.zero_points, **self.options, grad_factors=self.factors)

    def one_by_one(self) -> list[Tensor]:
        return [
            fq.fake_quantize(x, s, z, **{name: values[i] for name, values in self.options.items()}, grad_factor=self.factors[i])
            for i, (x, s, z) in enumerate(zip(self.xs, self.scales, self.zero_points, strict=True))
        ]

    def gradients(self) -> list[Tensor | None]:
        return [None if t is None else t.grad for t in (*self.xs, *self.scales, *self.zero_points)]


Results = tuple[list[Tensor], list[Tensor | None]]


def run(quantize: Callable[[Call], list[Tensor]], inputs: Sequence[FakeQuantInputs], backend: str) -> Results:
    """Values and all gradients."""
    call = Call(inputs)
    with fq.use_backend(backend):
        ys = quantize(call)
        torch.autograd.backward(ys, [each.grad_y for each in inputs])
    return [y.detach() for y in ys], call.gradients()


def check(got: Results, inputs: Sequence[FakeQuantInputs], exact: Results | None = None) -> None:
    """Values and grad_x bit for bit those of the reference; sums within the contract, or with the bits of `exact`."""
    n = len(inputs)
    values, gradients = got
    for i, (x, grad_y, grid) in enumerate(inputs):
        what = f"tensor {i} {list(x.shape)} {x.dtype} axis {grid.axis} group {grid.group_size}"
        grad_x, *terms = reference.gradient_terms(grad_y, x, grid)
        assert_same_bits(values[i], reference.forward(x, grid), what)
        assert values[i].stride() == torch.empty_like(x).stride(), what
        assert_same_bits(gradients[i], grad_x.to(x.dtype), f"gradient of {what}")
        for k, each in zip((n + i, 2 * n + i), terms, strict=True):
            if gradients[k] is not None:
                grouped, dims = FakeQuantInputs(x, grad_y, grid).terms(each)
                assert_sum_close(gradients[k], grouped, 0.1 * (i + 1), dims, f"sum {k // n} of {what}")
    for got_bits, want_bits in zip(gradients, [] if exact is None else exact[1], strict=exact is not None):
        assert (got_bits is None) == (want_bits is None)
        if want_bits is not None:
            assert_same_bits(got_bits, want_bits, "sum")


@everywhere
def test_many_tensors_of_every_kind(backend: str, device: str) -> None:
    inputs = [case.inputs(device) for case in cases_for(backend, device)]
    alone = run(Call.one_by_one, inputs, backend) if backend != "triton" else None
    check(run(Call.at_once, inputs, backend), inputs, exact=alone)


@everywhere
def test_addresses_off_the_vector_boundary(backend: str, device: str) -> None:
    inputs = []
    for offset, shape, axis in [(1, (4096,), None), (3, (64, 64), 0), (2, (5, 33), 0), (1, (2, 3, 32), 1)]:
        flat, grad = (torch.randn(math.prod(shape) + offset, device=device)[offset:].view(shape) for _ in range(2))
        length = 1 if axis is None else shape[axis]
        inputs.append(
            FakeQuantInputs(flat, grad, reference.Grid(torch.full((length,), 0.1, device=device), None, -8, 7, axis, None, "div"))
        )
    check(run(Call.at_once, inputs, backend), inputs)


@pytest.mark.parametrize("values", ["random", "hard"])
@everywhere
def test_weights_of_a_network(backend: str, device: str, values: str) -> None:
    shapes = [(16, 3, 7, 7), (16, 16, 3, 3), (32, 1, 3, 3), (2, 4200, 1, 1)]
    cases = [
        FakeQuantCase(torch.float32, granularity, "contiguous", shape, values=values)
        for shape in shapes
        for granularity in ("tensor", "channel 0")
    ]
    inputs = [case.inputs(device) for case in cases]
    check(run(Call.at_once, inputs, backend), inputs)


@native
def test_same_bits_for_threads_and_one_by_one() -> None:
    shapes = [(64, 3, 7, 7), (64, 65, 3, 3), (512, 30, 1, 1), (3, 70_001, 1, 1), (2, 2, 1, 1)]
    cases = [FakeQuantCase(dtype, "channel 0" if i % 2 else "tensor", "contiguous", shape, zero_point="inside", values="random")
             for dtype in DTYPES for i, shape in enumerate(shapes)]  # fmt: skip
    inputs = [case.inputs() for case in cases]
    before = torch.get_num_threads()
    try:
        results = []
        for threads, quantize in [(1, Call.one_by_one), (1, Call.at_once), (2, Call.at_once), (3, Call.at_once)]:
            torch.set_num_threads(threads)
            results.append(run(quantize, inputs, "cpu"))
    finally:
        torch.set_num_threads(before)
    for values, gradients in results[1:]:
        for got, want in zip([*values, *gradients], [*results[0][0], *results[0][1]], strict=True):
            assert_same_bits(got, want)


@everywhere
def test_every_output_is_written(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [case.inputs(device) for case in cases_for(backend, device, CASES[:12])]
    for name in ("empty_like", "empty"):
        original = getattr(torch, name)

        def poisoned(*args: Any, original: Callable = original, **kwargs: Any) -> Tensor:
            out = original(*args, **kwargs)
            return out.fill_(torch.nan) if out.dtype.is_floating_point else out.fill_(-77)

        monkeypatch.setattr(torch, name, poisoned)
    values, gradients = run(Call.at_once, inputs, backend)
    monkeypatch.undo()
    check((values, gradients), inputs)


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
    ({"semantics": "round"}, ValueError, "tensor 0: semantics"),
    ({"xs": [torch.ones(2, device=d) for d in ("cpu", "meta")], "scales": [torch.ones(1, device=d) for d in ("cpu", "meta")]}, ValueError,
     "accepted: one device"),
])  # fmt: skip
def test_bad_input(kwargs: dict, error: type[Exception], message: str) -> None:
    arguments = {"xs": [torch.ones(2), torch.ones(2)], "scales": [torch.ones(1), torch.ones(1)], "qmin": -8, "qmax": 7, **kwargs}
    with pytest.raises(error, match=message):
        fq.fake_quantize_all(arguments.pop("xs"), arguments.pop("scales"), arguments.pop("zero_points", None), **arguments)


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


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
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


@triton
def test_one_launch_forward_and_two_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastqat.ops.fake_quant_all import kernels

    started: list[str] = []

    class Counted:
        def __init__(self, name: str):
            self.name, self.kernel = name, getattr(kernels, name)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            started.append(self.name)
            return self.kernel[grid]

    for name in ("fake_quant_all_kernel", "fake_quant_all_backward_kernel", "fake_quant_all_finish_kernel"):
        monkeypatch.setattr(kernels, name, Counted(name))
    cases = [
        FakeQuantCase(torch.float32, granularity, "contiguous", (4, 8, 3, 3))
        for granularity in ("tensor", "channel 0", "group 1", "channel 1")
    ]
    run(Call.at_once, [case.inputs() for case in cases], "triton")
    assert started == ["fake_quant_all_kernel", "fake_quant_all_backward_kernel", "fake_quant_all_finish_kernel"]


@pytest.mark.parametrize(
    "view", [(1, 1, 1, 1), (1, 1, 1, 2**33), (1, 1, 512, 4608), (1, 1, 8, 2**31), (64, 3, 5, 33), (1, 1, 10_000, 9), (1, 1, 1, 0)]
)
def test_a_cut_covers_every_element_once(view: tuple[int, ...]) -> None:
    cut = table.cut(table.View(*view))
    inner = view[-1]
    assert cut.pieces * table.COLUMNS >= inner and (cut.pieces - table.ROWS) * table.COLUMNS < inner
    assert cut.tiles * table.ROWS >= cut.rows * cut.pieces > (cut.tiles - 1) * table.ROWS or inner == 0
    if cut.long:
        assert cut.tiles == cut.rows * cut.run, "a tile of a long row leaves one partial"
    else:
        assert cut.run == cut.pieces


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
