"""Per group, and the cut into tasks behind it: axes, layouts, dtypes, semantics, threads and instruction sets against the reference."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fastqat as fq
from fastqat._backend import backends_for
from fastqat.ops._layout import by_storage, from_storage, quant_view
from fastqat.ops.fake_quant import op, reference
from fastqat.ops.fake_quant.reference import Grid
from fastqat.testing import assert_same_bits, with_layout

native = pytest.mark.skipif("cpu" not in backends_for("fake_quant"), reason="fastqat._C is not built")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
QMIN, QMAX = -4, 3


@pytest.fixture
def settings() -> Iterator[None]:
    """Puts the thread count and the instruction set back."""
    from fastqat import _C

    threads, level = torch.get_num_threads(), _C.cpu_level()
    yield
    torch.set_num_threads(threads)
    _C.set_cpu_level(level)


def levels() -> list[str]:
    """Instruction sets that this machine can run."""
    from fastqat import _C

    return [name for name in _C.build_info()["cpu_levels"].split() if _runs(name)]


def _runs(level: str) -> bool:
    from fastqat import _C

    before = _C.cpu_level()
    try:
        _C.set_cpu_level(level)
    except RuntimeError:
        return False
    _C.set_cpu_level(before)
    return True


def grid_of(x: Tensor, axis: int, group_size: int | None, zero_point: bool, semantics: str, seed: int = 0) -> Grid:
    """Random scales for x; the zero points are integers."""
    generator = torch.Generator().manual_seed(seed)
    length = x.shape[axis]
    shape = [length] if group_size is None else [*x.shape[:axis], length // group_size, *x.shape[axis + 1 :]]
    scale = torch.rand(shape, generator=generator) * 0.2 + 0.01
    zero = torch.randint(-1, 3, shape, generator=generator).float() if zero_point else None
    return Grid(scale, zero, QMIN, QMAX, axis, group_size, semantics)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_sums(got: Tensor, terms: Tensor, grid: Grid, factor: float, what: str) -> None:
    """The contract's bound, for sums of any granularity."""
    want, size = (reference._total(each, grid) * factor for each in (terms, terms.abs()))
    error = (got.double() - want.reshape(got.shape)).abs()
    allowed = (2.0**-20 * size + 2.0**-24 * want.abs() + 1e-40).reshape(got.shape)
    assert bool((error <= allowed).all()), f"{what}: error {error.max():.3g}, allowed {allowed.max():.3g}"


def results(x: Tensor, grad_y: Tensor, grid: Grid) -> tuple[Tensor | None, ...]:
    """x_hat, codes and the gradients of the native kernels."""
    return (
        op.Native.forward(x, grid),
        op.Native.codes(x, grid),
        *op.Native.backward(grad_y, x, grid, 0.25, True, grid.zero_point is not None),
    )


def check(x: Tensor, grad_y: Tensor, grid: Grid, what: str) -> None:
    x_hat, codes, grad_x, grad_scale, grad_zero_point = results(x, grad_y, grid)
    assert x_hat is not None and codes is not None and grad_x is not None and grad_scale is not None
    assert_same_bits(x_hat, reference.forward(x, grid), f"x_hat, {what}")
    assert_same_bits(codes, reference.codes(x, grid), f"codes, {what}")
    want_grad_x, scale_terms, zero_point_terms = reference.gradient_terms(grad_y, x, grid)
    assert_same_bits(grad_x, want_grad_x.to(x.dtype), f"grad_x, {what}")
    assert_sums(grad_scale, scale_terms, grid, 0.25, f"grad_scale, {what}")
    if grad_zero_point is not None:
        assert_sums(grad_zero_point, zero_point_terms, grid, 0.25, f"grad_zero_point, {what}")


LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "expanded")
AXES = [
    ((4, 64, 3, 3), 0, 2),
    ((4, 64, 3, 3), 1, 64),
    ((4, 64, 3, 3), 1, 16),
    ((2, 6, 5, 64), 3, 32),
    ((2, 6, 5, 64), 3, 16),
    ((3, 6, 70, 8), 2, 35),
]


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "axis", "group_size"), AXES, ids=str)
def test_groups_equal_the_reference(shape: tuple[int, ...], axis: int, group_size: int, layout: str, dtype: torch.dtype) -> None:
    for seed, (zero_point, semantics) in enumerate([(False, "div"), (True, "reciprocal"), (True, "div"), (False, "reciprocal")]):
        x = with_layout(normal(*shape, seed=seed).to(dtype), layout)
        check(x, normal(*shape, seed=9).to(dtype), grid_of(x, axis, group_size, zero_point, semantics), f"{semantics}, z {zero_point}")


# Where the cut into tasks changes its shape: slices, copies, rows of one word, odd runs, many blocks, one scale per element.
CUTS = [
    ((1, 4095), 1, None),
    ((3, 4097), 1, None),
    ((70, 2049), 1, None),
    ((33, 1023), 1, None),
    ((5000, 3), 1, None),
    ((700, 7, 5), 1, None),
    ((40, 33, 31), 1, None),
    ((9, 300, 15), 1, None),
    ((50, 30, 49), 1, None),
    ((6, 16385), 0, None),
    ((3, 40000), 1, 32),
    ((3, 8192), 1, 128),
    ((3, 8190), 1, 18),
    ((2, 6000), 1, 1),
    ((2, 6001), 1, 17),
    ((640, 130), 0, 64),
    ((200, 128, 3), 1, 64),
    ((2, 1), 1, 1),
]


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "axis", "group_size"), CUTS, ids=str)
def test_every_cut_equals_the_reference(shape: tuple[int, ...], axis: int, group_size: int | None, dtype: torch.dtype) -> None:
    if group_size is not None and shape[axis] % group_size:
        shape = (*shape[:axis], shape[axis] // group_size * group_size, *shape[axis + 1 :])
    x, grad_y = normal(*shape).to(dtype), normal(*shape, seed=1).to(dtype)
    for zero_point, semantics in ((False, "div"), (True, "reciprocal")):
        check(x, grad_y, grid_of(x, axis, group_size, zero_point, semantics), semantics)


@native
@pytest.mark.parametrize(
    ("shape", "axis", "group_size"), [((40, 64, 3, 3), 1, 64), ((5, 4128), 1, 16), ((300, 1000), 1, None), ((90, 777), 0, None)]
)
def test_same_bits_for_every_thread_count_and_instruction_set(
    shape: tuple[int, ...], axis: int, group_size: int | None, settings: None
) -> None:
    from fastqat import _C

    for dtype in DTYPES:
        x, grad_y = normal(*shape).to(dtype), normal(*shape, seed=1).to(dtype)
        grid = grid_of(x, axis, group_size, True, "div")
        seen = []
        for level in levels():
            for threads in (1, 2, 3):
                _C.set_cpu_level(level)
                torch.set_num_threads(threads)
                seen.append(results(x, grad_y, grid))
        for other in seen[1:]:
            assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True) if a is not None and b is not None)


@native
def test_nan_in_any_operand_stays_nan_in_every_dtype() -> None:
    """A NaN whose bits are all ones would become −0 if bf16 rounding carried into its sign."""
    ones = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    for dtype in DTYPES:
        x = torch.ones(2, 64).to(dtype)
        x[0, 3] = torch.nan
        scale = torch.stack([torch.tensor([0.5, 0.5]), torch.cat([ones, torch.tensor([0.5])])])
        grid = Grid(scale, None, QMIN, QMAX, 1, 32, "div")
        x_hat = op.Native.forward(x, grid)
        assert x_hat[1, :32].isnan().all() and x_hat[0, 3].isnan() and int(x_hat.isnan().sum()) == 33
        grad_x, grad_scale, _ = op.Native.backward(torch.ones_like(x), x, grid, 1.0, True, False)
        assert_same_bits(grad_x, reference.backward(torch.ones_like(x), x, grid, 1.0, True, False)[0], "grad_x")
        assert grad_scale is not None and grad_scale.isnan().tolist() == [[True, False], [True, False]]


@native
def test_unaligned_storage() -> None:
    """x, grad_y and the outputs of an odd offset: halves are read two at a time."""
    for dtype in DTYPES:
        flat, gradient = normal(4 * 97 + 1).to(dtype), normal(4 * 97 + 1, seed=1).to(dtype)
        x, grad_y = flat[1:].view(4, 97), gradient[1:].view(4, 97)
        for axis in (0, 1):
            check(x, grad_y, grid_of(x, axis, None, True, "div"), f"axis {axis}")


@native
def test_gradients_may_take_the_place_of_grad_y() -> None:
    for dtype in DTYPES:
        x, grad_y = normal(5, 4, 96).to(dtype), normal(5, 4, 96, seed=1).to(dtype)
        for axis, group_size in ((2, 32), (1, None), (2, None)):
            grid = grid_of(x, axis, group_size, True, "div")
            want, own = op.Native.backward(grad_y, x, grid, 1.0, True, True), grad_y.clone()
            got = op.Native.backward(own, x, grid, 1.0, True, True, in_place=True)
            assert got[0].data_ptr() == own.data_ptr()
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True) if a is not None and b is not None)


def test_scales_in_storage_order() -> None:
    """`by_storage` counts scales as the view does, and `from_storage` undoes it."""
    for layout in ("contiguous", "channels_last", "transposed"):
        x = with_layout(torch.zeros(4, 6, 8, 10), layout)
        for axis, group_size in ((0, 2), (1, 3), (2, 4), (3, 5)):
            shape = torch.Size([*x.shape[:axis], x.shape[axis] // group_size, *x.shape[axis + 1 :]])
            scale = torch.arange(shape.numel()).view(shape)
            view, flat = quant_view(x, axis, group_size), by_storage(x, scale).flatten()
            own = flat.view(view.blocks, 1, view.channels, 1).expand(view).reshape(-1)
            want = torch.empty_like(x).copy_(scale.repeat_interleave(group_size, axis))
            storage = want.as_strided([want.numel()], [1])
            assert torch.equal(own.float(), storage)
            assert torch.equal(from_storage(x, flat, shape), scale)


def _free_gigabytes() -> float:
    names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
    return math.prod(os.sysconf(name) for name in names) / 2**30 if set(names) <= os.sysconf_names.keys() else 0.0


@native
@pytest.mark.skipif(_free_gigabytes() < 6, reason="needs 6 GiB of free memory")
def test_offsets_beyond_32_bits() -> None:
    """x is memory that was never written: its pages are the kernel's one page of zeros, so only the codes take room."""
    far = 2**31
    x = torch.empty(far + 2**16, dtype=torch.bfloat16)
    x[0], x[far], x[-1] = 2.0, -0.5, 1.0
    for axis, values in ((None, x), (0, x.view(-1, 64))):
        scale = torch.tensor(0.5) if axis is None else torch.full((values.shape[0],), 0.5)
        codes = fq.quantize_codes(values, scale, qmin=QMIN, qmax=QMAX, axis=axis).flatten()
        assert [int(codes[i]) for i in (0, far, -1)] == [3, -1, 2]
        assert not codes[1:1024].any() and not codes[far - 1024 : far].any() and not codes[far + 1 : -1].any()
        del codes
