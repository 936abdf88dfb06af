"""More than 2³¹ elements: the index arithmetic on tensors without memory, and real ones where there is memory for them."""

from __future__ import annotations

import math
import mmap
import os

import pytest
import torch
from torch import Tensor

import fastqat as fq
from fastqat import testing
from fastqat.ops._layout import quant_view
from fastqat.ops.fake_quant import reference
from fastqat.ops.fake_quant.op import Native
from fastqat.ops.fake_quant.reference import Grid
from fastqat.testing import assert_same_bits

EDGE = 2**31
# Shape, axis, group size: an odd number of elements beyond 2³¹, rows and columns on both sides of it.
SHARING = {
    "tensor": ((EDGE + 77,), None, None),
    "rows": ((3, EDGE // 2 + 7), 0, None),
    "columns": ((EDGE // 3 + 31, 3), 1, None),
    "middle": ((7, 5, EDGE // 32 + 1), 1, None),
    "groups of neighbours": ((EDGE // 64 + 3, 64), 1, 16),
    "groups of columns": ((64, EDGE // 64 + 3), 0, 16),
}


def flat_scale(index: tuple[int, ...], shape: tuple[int, ...], axis: int | None, group_size: int | None) -> int:
    """Which scale, counted in its own contiguous order, the element at `index` uses."""
    if axis is None:
        return 0
    if group_size is None:
        return index[axis]
    own = [i // group_size if d == axis else i for d, i in enumerate(index)]
    sizes = [n // group_size if d == axis else n for d, n in enumerate(shape)]
    return sum(i * math.prod(sizes[d + 1 :]) for d, i in enumerate(own))


@pytest.mark.parametrize("sharing", SHARING)
def test_the_view_counts_beyond_31_bits(sharing: str) -> None:
    shape, axis, group_size = SHARING[sharing]
    view = quant_view(torch.empty(shape, device="meta"), axis, group_size)
    total = math.prod(shape)
    assert math.prod(view) == total > EDGE
    for offset in (0, 1, EDGE - 1, EDGE, EDGE + 1, total - 65, total - 1):
        channel = offset // view.inner % view.channels
        block = offset // (view.inner * view.channels * view.outer)
        index = tuple(offset // math.prod(shape[d + 1 :]) % shape[d] for d in range(len(shape)))
        assert block * view.channels + channel == flat_scale(index, shape, axis, group_size)


asked_for = pytest.mark.skipif(
    os.environ.get("FASTQAT_HUGE_TESTS") != "1", reason="takes a minute and 5 GB of memory: set FASTQAT_HUGE_TESTS=1"
)


def unwritten_zeros(n: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """n zeros that take no memory before they are written; large pages, since small ones cost more time than the op."""
    memory = mmap.mmap(-1, n * dtype.itemsize)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=n)


MARKS = (0, EDGE - 2, EDGE - 1, EDGE, EDGE + 1, -2, -1)
native = pytest.mark.skipif("cpu" not in fq.backends() or fq.backends()["cpu"]["fake_quant"] is not None, reason="fastqat._C is not built")


@native
@asked_for
@pytest.mark.parametrize("sharing", ["rows", "columns"])
def test_cpu_writes_the_last_codes(sharing: str) -> None:
    shape, axis, _ = {"rows": ((2, EDGE // 2 + 7), 0, None), "columns": SHARING["columns"]}[sharing]
    x = unwritten_zeros(math.prod(shape))
    x[list(MARKS)] = torch.arange(1, len(MARKS) + 1, dtype=torch.float16)
    scale = torch.linspace(0.5, 1.0, shape[axis])
    codes = unwritten_zeros(len(x), torch.int8)
    view = quant_view(x.view(shape), axis)
    torch.ops.fastqat_native.quantize_codes(x.view(shape), scale, None, codes.view(shape), *view, -128, 127, False)
    assert codes.count_nonzero() == len(MARKS)
    for k, mark in enumerate(MARKS):
        place = mark % len(x)
        s = scale[place // shape[1] if axis == 0 else place % shape[1]]
        assert codes[mark] == ((k + 1) / s).round()


@native
@asked_for
def test_cpu_sums_the_last_gradients() -> None:
    shape = SHARING["columns"][0]
    x, grad_y = unwritten_zeros(math.prod(shape)), unwritten_zeros(math.prod(shape))
    x[list(MARKS)] = 9.0
    grad_y[list(MARKS)] = 1.0
    x[-1] = 0.25
    grid = Grid(torch.ones(3), None, -2, 1, 1, None, "div")
    grad_x, grad_scale, _ = Native.backward(grad_y.view(shape), x.view(shape), grid, 1.0, True, False, in_place=True)
    want = torch.zeros(3)
    for mark in MARKS[:-1]:
        want[mark % len(x) % 3] += 1  # saturated: grad_y · qmax
    want[(len(x) - 1) % 3] -= 0.25
    assert torch.equal(grad_scale, want)
    assert grad_x.count_nonzero() == 1 and grad_x[-1, -1] == 1


GPU = [backend for backend, device in testing.places("fake_quant") if device == "cuda" and backend != "reference"]
big_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 30e9, reason="needs a CUDA device with 30 GB"
)


@big_gpu
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("backend", GPU or ["triton"])
def test_gpu_equals_the_reference_at_both_ends(backend: str, sharing: str) -> None:
    shape, axis, group_size = SHARING[sharing]
    scale_shape = [1] if axis is None else [shape[axis]]
    if group_size is not None:
        scale_shape = [n // group_size if d == axis else n for d, n in enumerate(shape)]
    generator = torch.Generator("cuda").manual_seed(0)
    x, grad_y = (torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(generator=generator) for _ in range(2))
    scale = torch.rand(scale_shape, device="cuda", generator=generator) * 0.2 + 0.1
    grid = Grid(scale, None, -8, 7, axis, group_size, "div")
    with fq.use_backend(backend):
        leaf, step = x.requires_grad_(), scale.clone().requires_grad_()
        y = fq.fake_quantize(leaf, step, qmin=-8, qmax=7, axis=axis, group_size=group_size)
        grad_x, grad_scale = torch.autograd.grad(y, (leaf, step), grad_y)
    long = max(range(len(shape)), key=lambda d: shape[d])
    for start in (0, shape[long] // 2, shape[long] - 2**14):
        if long == axis and group_size is None:
            continue
        part = [t.narrow(long, start, 2**14) for t in (x.detach(), grad_y, y.detach(), grad_x)]
        few = scale.narrow(long, start, 2**14) if group_size is not None else scale
        cut = grid._replace(scale=few)
        assert_same_bits(part[2], reference.forward(part[0], cut), "x_hat")
        assert_same_bits(part[3], reference.gradient_terms(part[1], part[0], cut)[0].to(x.dtype), "grad_x")
    check_sums(grad_scale, x.detach(), grad_y, grid)


def check_sums(got: Tensor, x: Tensor, grad_y: Tensor, grid: Grid, parts: int = 64) -> None:
    """The sums of the reference, piece by piece along a dimension that no scale is cut by."""
    if grid.group_size is not None:
        d = 1 - grid.axis
        pieces = [
            (x.narrow(d, i, 2**10), grad_y.narrow(d, i, 2**10), grid._replace(scale=grid.scale.narrow(d, i, 2**10)), i) for i in (0, 2**20)
        ]
        for a, b, cut, i in pieces:
            _, want, _ = reference.backward(b, a, cut, 1.0, True, False)
            torch.testing.assert_close(got.narrow(d, i, 2**10), want, rtol=1e-4, atol=1e-3)
        return
    d = max((d for d in range(x.dim()) if d != grid.axis), key=lambda d: x.shape[d])
    want = torch.zeros_like(got, dtype=torch.float64)
    for a, b in zip(x.chunk(parts, d), grad_y.chunk(parts, d), strict=True):
        want += reference.backward(b, a, grid, 1.0, True, False)[1]
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1.0)
