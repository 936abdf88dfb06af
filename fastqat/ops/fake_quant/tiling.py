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

VECTOR_BYTES = 16
LINE_BYTES = 128  # a tile takes at least so much of a row that has it
THREAD = 16  # elements of a thread of a large tile: several loads in flight; half of that for small tensors and where registers are short
WARPS = 4
SMALL = 1 << 21  # below so many elements a forward pass takes smaller tiles, to have more programs
PROGRAMS = 2048  # of a backward pass over a large tensor, about two waves on the largest GPUs; each leaves one partial per scale
WHOLE_STEPS = 8  # up to so many tiles one program sums a scale alone: cheaper than a second launch
ONE_PROGRAM, ONE_PROGRAM_WARPS = 1 << 15, 16  # a tensor of one scale up to this size is summed by one large program
COLUMNS = 256  # widest tile of columns where there are rows to fill it
WASTE = 1.125  # lanes over elements that a tile may cost before a narrower one is looked for


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


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power(n: int) -> int:
    """The least power of two that is not below `n`."""
    return 1 << max(n - 1, 0).bit_length()


def _waste(length: int, tile: int) -> float:
    """Lanes over elements when `length` is cut into pieces of `tile`."""
    return _ceil(length, tile) * tile / length


def _widths(length: int, vector: int, widest: int) -> list[int]:
    """Tile widths to choose from for rows of `length`, widest first."""
    narrowest = min(vector * LINE_BYTES // VECTOR_BYTES, _power(length), widest)
    return [widest >> k for k in range(widest.bit_length()) if widest >> k >= narrowest]


def _narrowed(widths: list[int], waste: Callable[[int], float]) -> int:
    """The first width with little waste, else the one with least."""
    return next((width for width in widths if waste(width) <= WASTE), min(widths, key=waste))


def _chunks(steps: int, tiles: int) -> tuple[int, int]:
    """Chunks, and steps of each, when `tiles` groups of scales take `steps` tiles each."""
    if steps <= WHOLE_STEPS:
        return 1, steps
    per_chunk = _ceil(steps, min(steps, _ceil(PROGRAMS, tiles)))
    return _ceil(steps, per_chunk), per_chunk


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
    columns = _narrowed(widths, lambda width: _waste(inner, width) * _waste(channels, size // width))
    rows = size // columns
    steps, groups = outer * _ceil(inner, columns), _ceil(channels, rows)
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

    def waste(fold: int) -> float:
        widths = _widths(fold * period, vector, min(COLUMNS, _power(fold * period)))
        return max(WASTE, min(_waste(fold * period, width) for width in widths))

    return min((fold for fold in range(least, view.outer + 1, least) if fold == least or fold * period <= COLUMNS), key=waste)


def _by_columns(view: View, vector: int, warps: int, per_thread: int) -> Tiling:
    blocks, outer, channels, inner = view
    fold = _fold(view, vector)
    rows, width = _ceil(outer, fold), fold * channels * inner
    size = 32 * warps * per_thread
    widest = min(size, max(min(COLUMNS, _power(width)), size // _power(rows)))
    columns = _narrowed(_widths(width, vector, widest), lambda tile: _waste(width, tile))
    if fold * inner == 1:  # a narrower tile may be tall enough to sum whole columns
        columns = next((tile for tile in _widths(width, vector, columns) if rows <= WHOLE_STEPS * (size // tile)), columns)
    while warps > 1 and size // columns >= 2 * rows:  # few rows: fewer threads
        warps, size = warps // 2, size // 2
    tile_rows = size // columns
    steps, groups = _ceil(rows, tile_rows), blocks * _ceil(width, columns)
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
    wide = min(_power(parts), 1024)
    return max(1, min(_power(scales), 1024 // wide)), wide
