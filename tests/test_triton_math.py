"""The arithmetic that Triton kernels share, element by element against torch, and the offsets of tiles beyond 2³¹ elements."""

from __future__ import annotations

import pytest
import torch

from fastqat import _triton as shared
from fastqat._triton import jit, tl
from fastqat.ops.fake_quant import kernels
from fastqat.testing import assert_same_bits, places, ties

DEVICE = next((device for backend, device in places("fake_quant") if backend == "triton"), None)
pytestmark = pytest.mark.skipif(DEVICE is None, reason="needs triton, and a GPU or TRITON_INTERPRET=1")
SIZE = 1024


@jit
def apply_kernel(x_ptr, out_ptr, low, high, WHICH: tl.constexpr, SIZE: tl.constexpr):
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + index)
    if WHICH == 0:
        out = shared.round_half_even(x)
    elif WHICH == 1:
        out = shared.round_half_even_any(x)
    else:
        out = shared.clamp(x, low, high)
    tl.store(out_ptr + index, out)


@jit
def divide_kernel(x_ptr, s_ptr, out_ptr, RECIPROCAL: tl.constexpr, SIZE: tl.constexpr):
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    s = tl.load(s_ptr + index)
    inv = tl.div_rn(tl.full([SIZE], 1.0, tl.float32), s)
    tl.store(out_ptr + index, shared.to_steps(tl.load(x_ptr + index), s, inv, RECIPROCAL))


@jit
def offsets_kernel(out_ptr, matrix, row, column, rows, width, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = row.to(tl.int64), column.to(tl.int64)
    begin, offsets, mask, _ = kernels.tile_at(matrix, row, column, rows, width, None, 1, WIDE, ROWS, COLUMNS)
    place = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out_ptr + place, tl.where(mask, begin + offsets, -1))


def padded(x: torch.Tensor) -> torch.Tensor:
    """`x` and zeros up to whole programs."""
    return torch.cat([x, x.new_zeros(-x.numel() % SIZE)])


def apply(which: int, x: torch.Tensor, low: float = 0.0, high: float = 0.0) -> torch.Tensor:
    whole = padded(x).to(DEVICE)
    out = torch.full_like(whole, torch.nan)
    apply_kernel[(whole.numel() // SIZE,)](whole, out, low, high, WHICH=which, SIZE=SIZE, **shared.NO_FUSION)
    return out[: x.numel()].cpu()


def halves() -> torch.Tensor:
    """Integers and ties with both neighbours, small and up to 2²²."""
    small = torch.arange(-2100, 2101) * 0.5
    large = 2.0**22 - 0.5 * torch.arange(1, 200)
    centre = torch.cat([small, large, -large])
    up, down = (torch.nextafter(centre, torch.tensor(limit)) for limit in (torch.inf, -torch.inf))
    return torch.cat([centre, up, down])


def test_round_half_even_on_every_tie() -> None:
    x = torch.cat([halves(), torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, torch.nan])])
    got = apply(0, x)
    assert_same_bits(got, x.round() + 0.0)
    assert not (torch.signbit(got) & (got == 0)).any(), "-0 returned"


def test_round_half_even_any_of_huge_values() -> None:
    large = torch.tensor([2.0**22 + 0.5, 2.0**22 + 1.5, 2.0**23 - 0.5, 2.0**23 - 1.5, 2.0**23, 2.0**23 + 1, 2.0**24 + 2, 3e38, torch.inf])
    x = torch.cat([halves(), large, -large, torch.tensor([torch.nan])])
    assert torch.equal(apply(1, x).nan_to_num(nan=12345.0), x.round().nan_to_num(nan=12345.0))


def test_clamp_keeps_nan() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -3.0, -8.0, 7.0, 7.5, -8.5, 0.0])
    assert_same_bits(apply(2, x, -8.0, 7.0), torch.tensor([torch.nan, 7.0, -8.0, -3.0, -8.0, 7.0, 7.0, -8.0, 0.0]))


@pytest.mark.parametrize("reciprocal", [False, True])
def test_steps_are_those_of_torch(reciprocal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(20_000, generator=generator) * torch.logspace(-30, 30, 20_000)
    x = padded(torch.cat([random, ties(0.0371, -8, 7)]))
    s = torch.rand(x.shape, generator=generator) * torch.logspace(-6, 6, x.numel()) + 1e-9
    out = torch.empty_like(x, device=DEVICE)
    divide_kernel[(x.numel() // SIZE,)](x.to(DEVICE), s.to(DEVICE), out, RECIPROCAL=reciprocal, SIZE=SIZE, **shared.NO_FUSION)
    assert_same_bits(out.cpu(), x * s.reciprocal() if reciprocal else x / s)


@pytest.mark.parametrize(
    ("matrix", "row", "column", "rows", "width"),
    [
        (0, 0, 5_000_000_000, 1, 5_000_000_003),  # one long row
        (3, 70_000, 50_000, 70_003, 50_002),  # matrices of 3.5e9 elements
        (2**20, 2, 0, 5, 4099),  # many matrices
        (0, 8, 2**30 + 4, 11, 2**30 + 5),  # rows so long that the offsets within a tile take 64 bits
    ],
    ids=["one row", "large matrices", "many matrices", "long rows"],
)
def test_tiles_beyond_31_bits(matrix: int, row: int, column: int, rows: int, width: int) -> None:
    tile = (4, 8)
    out = torch.empty(tile, dtype=torch.int64, device=DEVICE)
    offsets_kernel[(1,)](out, matrix, row, column, rows, width, WIDE=4 * width >= 2**31, ROWS=4, COLUMNS=8, **shared.NO_FUSION)
    want = [
        [(matrix * rows + r) * width + c if r < rows and c < width else -1 for c in range(column, column + 8)] for r in range(row, row + 4)
    ]
    assert out.tolist() == want
