"""fake_quantize_all: one call against one call per tensor on every backend, layout, granularity and dtype; how Triton cuts the tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fastqat as fq
from fastqat import testing
from fastqat.ops.fake_quant import reference
from fastqat.ops.fake_quant_all import table
from fastqat.testing import FakeQuantCase, FakeQuantInputs, assert_same_bits, assert_sum_close

PLACES = testing.places("fake_quant_all")
everywhere = pytest.mark.parametrize(("backend", "device"), PLACES)
native = pytest.mark.skipif(("cpu", "cpu") not in PLACES, reason="fastqat._C is not built")
triton = pytest.mark.skipif(not any(backend == "triton" for backend, _ in PLACES), reason="no Triton, or started without its interpreter")

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
