"""How the Triton kernels cut a `View` into tiles and programs: pure functions of shape and element size, never of the device.

So the sums have the same bits on every GPU, and nothing is tuned at run time. Two ways to read the memory as matrices ``[rows, width]``:

* rows: a row is the `inner` run of one channel, and there are `outer` matrices; a tile is some channels by a piece of their runs.
* columns: a row holds every channel, `fold` times, so that rows begin on vector boundaries and fill a tile; there are `blocks` matrices; a
  tile is some rows by neighbouring columns. It reads channels-last memory in order, each element once, also for the sums per channel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .._layout import View
from .._tiles import WASTE, ceil_div, narrowed, power, waste

VECTOR_BYTES = 16
LINE_BYTES = 128  # a tile takes at least so much of a row that has it
THREAD = 16  # elements of a thread of a large tile: several loads in flight; half of that for small tensors and where registers are short
WARPS = 4
SMALL = 1 << 21  # below so many elements a forward pass takes smaller tiles, to have more programs
PROGRAMS = 2048  # of a backward pass over a large tensor, about two waves on the largest GPUs; each leaves one partial per scale
WHOLE_STEPS = 8  # up to so many tiles one program sums a scale alone: cheaper than a second launch
ONE_PROGRAM, ONE_PROGRAM_WARPS = 1 << 15, 16  # a tensor of one scale up to this size is summed by one large program
COLUMNS = 256  # widest tile of columns where there are rows to fill it


class Tiling(NamedTuple):
    """A cut into matrices ``[rows, width]`` and tiles, with what the kernels are compiled and launched with."""

    by_column: bool
    rows: int
    width: int
    fold: int
    programs: int  # of a forward pass: one per tile
    backward_programs: int
    chunks: int  # programs that share the tiles of a scale in a backward pass; each takes `steps` of them
    steps: int
    partials: int  # of one sum in a backward pass
    finishes: bool  # there is one partial per scale: it is the gradient
    run: int  # terms that are added in fp32 before fp64 takes over: a thread's vector in a row, its rows in a column
    constants: dict[str, Any]
    options: dict[str, Any]


@functools.lru_cache(maxsize=4096)
def tiling(view: View, itemsize: int, backward: bool = False) -> Tiling:
    """The cut of a `view` that is not empty, with elements of `itemsize` bytes, for a forward or a backward pass.

    Example:
        >>> cut = tiling(View(1, 1, 1, 1_000_000), 4)
        >>> cut.constants["ROWS"], cut.constants["COLUMNS"], cut.programs
        (1, 1024, 977)
        >>> cut = tiling(View(1, 802816, 24, 1), 4, backward=True)  # channels-last, per channel
        >>> cut.fold, cut.width, cut.constants["ROWS"], cut.constants["COLUMNS"], cut.chunks
        (4, 96, 32, 32, 628)
    """
    vector, size = VECTOR_BYTES // itemsize, math.prod(view)
    warps, per_thread = WARPS, THREAD
    if (vector == 4) if backward else (size < SMALL):
        per_thread = THREAD // 2
    if backward and view.channels * view.blocks == 1 and size <= ONE_PROGRAM:
        warps, per_thread = ONE_PROGRAM_WARPS, THREAD
    cut: Callable[[View, int, int, int], Tiling] = _by_columns if _has_columns(view, vector) else _by_rows
    return cut(view, vector, warps, per_thread)


def _has_columns(view: View, vector: int) -> bool:
    """Runs of one element; runs that are no whole vectors where there are matrices enough to fold."""
    if view.channels * view.blocks == 1:
        return False
    return view.inner == 1 or (view.outer >= vector and view.inner % vector != 0)


def _widths(length: int, vector: int, widest: int) -> list[int]:
    """Tile widths to choose from for rows of `length`, widest first."""
    narrowest = min(vector * LINE_BYTES // VECTOR_BYTES, power(length), widest)
    return [widest >> k for k in range(widest.bit_length()) if widest >> k >= narrowest]


def _chunks(steps: int, tiles: int) -> tuple[int, int]:
    """Chunks, and steps of each, when `tiles` groups of scales take `steps` tiles each."""
    if steps <= WHOLE_STEPS:
        return 1, steps
    per_chunk = ceil_div(steps, min(steps, ceil_div(PROGRAMS, tiles)))
    return ceil_div(steps, per_chunk), per_chunk


def _constants(width: int, align: int, even: bool, tile: tuple[int, int]) -> dict[str, Any]:
    """Compile-time arguments of the kernels that read a tensor; ALIGN 0: there is one row."""
    return {"ALIGN": align, "WIDE": tile[0] * width >= 2**31, "EVEN": even, "ROWS": tile[0], "COLUMNS": tile[1]}


def launch_options(warps: int) -> dict[str, Any]:
    """Launch options. A fused multiply-add would round once where the contract rounds twice."""
    return {"num_warps": warps, "enable_fp_fusion": False}


def _by_rows(view: View, vector: int, warps: int, per_thread: int) -> Tiling:
    _, outer, channels, inner = view
    align = 0 if channels == 1 else math.gcd(inner, vector)
    per_thread = THREAD // 2 if 0 < align < vector else per_thread  # narrow accesses take more registers
    size = 32 * warps * per_thread
    widths = [size] if channels == 1 else _widths(inner, vector, size)
    columns = narrowed(widths, lambda width: waste(inner, width) * waste(channels, size // width))
    rows = size // columns
    steps, groups = outer * ceil_div(inner, columns), ceil_div(channels, rows)
    chunks, per_chunk = (1, steps) if warps == ONE_PROGRAM_WARPS else _chunks(steps, groups)
    return Tiling(
        by_column=False,
        rows=channels,
        width=inner,
        fold=1,
        programs=steps * groups,
        backward_programs=chunks * groups,
        chunks=chunks,
        steps=per_chunk,
        partials=chunks * channels,
        finishes=chunks == 1,
        run=min(align or vector, columns),
        constants=_constants(inner, align, channels % rows == 0 and inner % columns == 0, (rows, columns)),
        options=launch_options(warps),
    )


def _fold(view: View, vector: int) -> int:
    """How many rows are read as one: enough for rows that begin on vectors, and of narrow ones so many that they fill a tile."""
    period = view.channels * view.inner
    least = vector // math.gcd(period, vector)
    if view.blocks > 1:
        return 1
    if least >= view.outer:
        return view.outer  # one row, and it begins where the tensor does

    def cost(fold: int) -> float:
        widths = _widths(fold * period, vector, min(COLUMNS, power(fold * period)))
        return max(WASTE, min(waste(fold * period, width) for width in widths))

    return min((fold for fold in range(least, view.outer + 1, least) if fold == least or fold * period <= COLUMNS), key=cost)


def _by_columns(view: View, vector: int, warps: int, per_thread: int) -> Tiling:
    blocks, outer, channels, inner = view
    fold = _fold(view, vector)
    rows, width = ceil_div(outer, fold), fold * channels * inner
    size = 32 * warps * per_thread
    widest = min(size, max(min(COLUMNS, power(width)), size // power(rows)))
    columns = narrowed(_widths(width, vector, widest), lambda tile: waste(width, tile))
    if fold * inner == 1:  # a narrower tile may be tall enough to sum whole columns
        columns = next((tile for tile in _widths(width, vector, columns) if rows <= WHOLE_STEPS * (size // tile)), columns)
    while warps > 1 and size // columns >= 2 * rows:  # few rows: fewer threads
        warps, size = warps // 2, size // 2
    tile_rows = size // columns
    steps, groups = ceil_div(rows, tile_rows), blocks * ceil_div(width, columns)
    chunks, per_chunk = _chunks(steps, groups)
    align = 0 if rows * blocks == 1 else math.gcd(width, vector)
    even = width % columns == 0 and rows % tile_rows == 0 and outer % fold == 0
    return Tiling(
        by_column=True,
        rows=rows,
        width=width,
        fold=fold,
        programs=steps * groups,
        backward_programs=chunks * groups,
        chunks=chunks,
        steps=per_chunk,
        partials=blocks * chunks * width,
        finishes=chunks == 1 and fold * inner == 1,
        run=min(tile_rows, per_thread // vector),
        constants=_constants(width, align, even, (tile_rows, columns)),
        options=launch_options(warps),
    )


def finish_tile(scales: int, parts: int) -> tuple[int, int]:
    """Scales of a program of the second stage, and how many partials of each it reads at once."""
    wide = min(power(parts), 1024)
    return max(1, min(power(scales), 1024 // wide)), wide
