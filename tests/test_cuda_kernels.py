"""The CUDA kernels without a GPU: the same source, compiled by g++ and run on the CPU, against the reference."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastqat.ops.fake_quant import reference
from fastqat.ops.fake_quant.reference import Grid
from fastqat.testing import GRANULARITIES, LAYOUTS, FakeQuantCase, assert_same_bits, assert_sum_close, pairwise, ties

from .native.on_host import FACTOR, STORAGE, Gradients, Inputs, OnHost, build


@pytest.fixture(scope="session")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> OnHost:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the CUDA kernels for the CPU")
    return build(tmp_path_factory.mktemp("cuda_on_host"))


def check(on_host: OnHost, x: Tensor, grad_y: Tensor, grid: Grid, got: Gradients | None = None) -> None:
    """Values, codes and grad_x are the reference's, the sums within the contract."""
    assert_same_bits(on_host.forward(x, grid), reference.forward(x, grid), "x_hat")
    assert_same_bits(on_host.codes(x, grid), reference.codes(x, grid), "codes")
    grad_x, *sums = got or on_host.backward(grad_y, x, grid)
    want, *terms = reference.gradient_terms(grad_y, x, grid)
    assert_same_bits(grad_x, want.to(x.dtype), "grad_x")
    for found, each, name in zip(sums, terms, ("grad_scale", "grad_zero_point"), strict=True):
        if found is not None:
            assert_sum_close(found, *shared_terms(each, grid), name)


def shared_terms(terms: Tensor, grid: Grid) -> tuple[Tensor, float, list[int] | None]:
    """`terms`, the factor, and the dimensions over which they are summed."""
    if grid.axis is None:
        return terms, FACTOR, None
    if grid.group_size is None:
        return terms, FACTOR, [d for d in range(terms.dim()) if d != grid.axis]
    return terms.unflatten(grid.axis, (-1, grid.group_size)), FACTOR, [grid.axis + 1]


# Rows and columns that end one before, at and one after a vector, a tile and a piece.
SHAPES = [
    (3, 0, 2, 5), (1, 1, 1, 1), (3, 6, 7, 15), (2, 3, 1, 1023), (1, 2, 2, 1024), (1, 2, 2, 1025), (2, 1023, 3, 1), (2, 1024, 1, 2),
    (1, 1025, 2, 2), (1, 1, 1, 4095), (1, 1, 1, 4097), (63, 4, 2, 2), (65, 2, 4, 4), (2, 64, 16, 31), (130, 33, 1, 1), (9, 4, 7, 17),
]  # fmt: skip
CASES = pairwise(
    shape=SHAPES,
    bits=[2, 3, 4, 8, 16],
    granularity=list(GRANULARITIES),
    layout=LAYOUTS,
    zero_point=["none", "inside", "outside", "fraction", "int32"],
    values=["hard", "random", "nan", "zeros"],
    scales=["any", "powers", "extreme"],
    dtype=STORAGE,
    signed=[True, False],
    semantics=["div", "reciprocal"],
)


@pytest.mark.parametrize("case", [FakeQuantCase(**case) for case in CASES], ids=str)
def test_kernels_equal_the_reference(on_host: OnHost, case: FakeQuantCase) -> None:
    check(on_host, *case.inputs())


def random(shape: Sequence[int], dtype: torch.dtype = torch.float32, *, axis: int | None = None, group_size: int | None = None) -> Inputs:
    """Normal x and grad_y, a scale and a zero point each; 4 bits."""
    generator = torch.Generator().manual_seed(len(shape))
    x, grad_y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    counts = [1] if axis is None else [shape[axis]]
    if axis is not None and group_size is not None:
        counts = [length // (group_size if d == axis else 1) for d, length in enumerate(shape)]
    scale = torch.rand(counts, generator=generator) * 0.3 + 0.05
    return Inputs(x, Grid(scale, torch.randint(0, 16, counts, generator=generator).float(), 0, 15, axis, group_size, "div"), grad_y)


# One each for: one row of many pieces, rows of a block each, short rows taken together, rows with a head and a tail, one tile of columns
# and many rows, few wide columns, an incomplete last merged row, blocks of columns, groups of neighbours.
LARGE: dict[str, dict[str, Any]] = {
    "tensor": {"shape": (70_003,)},
    "long rows": {"shape": (3, 9_001), "axis": 0},
    "short rows": {"shape": (40, 24, 130), "axis": 1},
    "odd rows": {"shape": (5, 3, 301), "axis": 1},
    "tall columns": {"shape": (9_001, 8), "axis": 1},
    "wide columns": {"shape": (17, 2_051), "axis": 1},
    "three channels": {"shape": (7_001, 3), "axis": 1},
    "blocks": {"shape": (4, 96, 34), "axis": 1, "group_size": 32},
    "groups": {"shape": (300, 128), "axis": 1, "group_size": 32},
}


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_many_pieces_in_any_order_and_in_place(on_host: OnHost, name: str, dtype: torch.dtype) -> None:
    x, grid, grad_y = random(dtype=dtype, **LARGE[name])
    found = on_host.backward(grad_y, x, grid)
    check(on_host, x, grad_y, grid, found)
    on_host.library.set_backwards(True)  # blocks and threads take their turns in the other order: a race would show
    try:
        again = on_host.backward(grad_y.clone(), x, grid, in_place=True)
    finally:
        on_host.library.set_backwards(False)
    for got, want in zip(again, found, strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("name", ["tensor", "odd rows", "tall columns", "blocks"])
def test_misaligned_tensors_give_the_same_bits(on_host: OnHost, name: str) -> None:
    def shifted(t: Tensor) -> Tensor:
        return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t)

    x, grid, grad_y = random(dtype=torch.bfloat16, **LARGE[name])
    assert shifted(x).data_ptr() % 16
    check(on_host, shifted(x), grad_y, grid)
    for got, want in zip(on_host.backward(grad_y, shifted(x), grid), on_host.backward(grad_y, x, grid), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("zero_point", [None, 3.0])
@pytest.mark.parametrize("semantics", ["div", "reciprocal"])
def test_every_tie_of_many_scales(on_host: OnHost, semantics: str, zero_point: float | None) -> None:
    """Scales of every kind that the plain path takes or leaves, among them those above 1 whose tiny quotients vanish."""
    generator = torch.Generator().manual_seed(0)
    scales = [0.1, 1.0, 1.9999999, 255.0, 2.0**-60, 2.0**60, 1e-38, 1e38, *(torch.rand(8, generator=generator) * 3).tolist()]
    for qmin, qmax in [(0, 15), (-8, 7)]:
        x = torch.stack([ties(scale, qmin, qmax) for scale in scales])
        scale = torch.tensor(scales)
        zero = None if zero_point is None else torch.full_like(scale, zero_point)
        check(on_host, x, torch.ones_like(x), Grid(scale, zero, qmin, qmax, 0, None, semantics))
        check(on_host, x.T.contiguous(), torch.ones_like(x.T), Grid(scale, zero, qmin, qmax, 1, None, semantics))


def test_many_tensors_in_one_launch(on_host: OnHost) -> None:
    cases = [LARGE[name] for name in ("tensor", "long rows", "short rows", "odd rows", "groups")] * 30
    inputs = [random(**case) for case in cases] + [random((0, 3), axis=1), random((301, 5), torch.float16, axis=1)]
    inputs = [Inputs(x, grid._replace(zero_point=None), grad_y) for x, grid, grad_y in inputs[:6]] + inputs[145:]
    before = on_host.library.launches()
    together = on_host.backward_all(inputs, together=True)
    assert on_host.library.launches() - before == 4  # rows without a zero point, rows with one, columns of fp16; all sums
    for got, want in zip(together, on_host.backward_all(inputs), strict=True):
        for a, b in zip(got, want, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert_same_bits(a, b)


def test_more_tensors_than_a_launch_takes(on_host: OnHost) -> None:
    inputs = [random((5 + i,)) for i in range(200)]
    outputs = [{"out": torch.full_like(each.x, torch.nan)} for each in inputs]
    assert on_host._call("forward", inputs, outputs, together=True) == 3  # 11 tensors are columns to the cut, 189 are rows
    for (x, grid, _), out in zip(inputs, outputs, strict=True):
        assert_same_bits(out["out"], reference.forward(x, grid))


def test_division_by_multiplication(on_host: OnHost) -> None:
    divisors = [1, 2, 3, 5, 7, 49, 64, 641, 2**31 - 1, 2**31, 2**31 + 1, 2**40 + 3, 2**61]
    for d in divisors:
        for n in [0, 1, d - 1, d, d + 1, 2**31, 2**32 + 1, 7 * d - 1, 7 * d, 2**61 + 5, 2**62 - 1]:
            if 0 <= n < 2**62:
                assert on_host.library.divide(n, d) == n // d, (n, d)


@pytest.mark.parametrize(
    "view",
    [(1, 1, 1, 2**33 + 5), (1, 4099, 3, 2**20), (1, 2**31 + 7, 5, 1), (3, 2**20, 4096, 1), (2**20, 128, 64, 1), (1, 1, 2**28, 32)],
    ids=str,
)
@pytest.mark.parametrize("storage", [0, 1])
def test_last_piece_of_more_than_2_to_31_elements(on_host: OnHost, view: tuple[int, ...], storage: int) -> None:
    blocks, outer, channels, inner = view
    found = (ctypes.c_int64 * 3)()
    on_host.library.last_piece((ctypes.c_int64 * 4)(*view), storage, found)
    first, scale, end = found
    assert 2**31 < first < end == blocks * outer * channels * inner
    block, rest = divmod(first, outer * channels * inner)
    assert scale == block * channels + rest // inner % channels
