"""How the Triton kernels of gradient norms cut their work: functions of shape and element size, never of the device.

So the sums have the same bits on every GPU, and nothing is tuned at run time. The limits that the sizes keep to are those of an A100 and
an H200: 255 registers a thread and 65536 a multiprocessor, 164 and 228 KiB of shared memory; the tiles fit into the 99 KiB of smaller
GPUs too.

direct    A tile of G in fp32 takes BLOCK_O · BLOCK_K / threads registers: 64 for 128 × 128 and 8 warps. A step multiplies BLOCK_T
          positions; its operands wait in shared memory, up to STAGES steps ahead: 3 · 64 · 256 · 2 bytes = 96 KiB in half precision. In
          fp32 both operands pass through registers on the way to the adders, so a step is 16 positions, and 8 where every element has
          an address of its own.
gram      Two tiles of products are in registers: 64 × 64 each, 64 registers with 4 warps.
grouped   BLOCK_O · BLOCK_K · BLOCK_T partial sums: 16 registers in fp32, 32 in half precision, whose wide loads bring twice as many
          elements. A load of g serves BLOCK_K products.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from .._tiles import ceil_div, narrowed, power, waste
from .addresses import Conv

LEAST = 16  # rows and columns of the smallest product of tiles that tensor cores know
GROUPED = 8  # outputs of a group below which its own products would be mostly idle
PROGRAMS = 256  # about two for each multiprocessor of the largest GPUs: with fewer, tiles get smaller
REPEATED = 1024  # programs beyond which one takes several samples of a masked layer, to read mask and slope less often
STAGES = 3
LANE_BYTES = 8192  # of x that a program of the grouped form multiplies at a time; as many partial sums as elements
GRAM = 64  # positions of a tile
ROW = 1024  # elements that the only position of a sample is read by
ROW_SAMPLES, ROW_OUTPUTS = 32, 32  # of a program with a mask: two products of fp32 tiles, 16 registers
FINISH = 1024  # partial sums that a program of the second stage reads at once


class Tiling(NamedTuple):
    """Programs, parts of each sample's sum, and what a kernel is compiled and launched with."""

    programs: int
    parts: int
    column_tiles: int  # of the direct form: parts of each output's sum with the slope
    repeat: int  # samples of a program
    constants: dict[str, Any]
    options: dict[str, Any]


def launch_options(warps: int, stages: int = STAGES) -> dict[str, Any]:
    """Launch options. Fused multiply-adds are wanted: sums of products are all there is."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def grouped(conv: Conv) -> bool:
    """The groups are too small for products of tiles."""
    return conv.groups > 1 and conv.outputs < GROUPED


@functools.lru_cache(maxsize=4096)
def direct_tiling(conv: Conv, samples: int, itemsize: int, masked: bool) -> Tiling:
    """The cut of the direct form for dense groups.

    Example:
        >>> from fastqat.ops.grad_norm.addresses import Conv
        >>> one, size = (1, 1, 1), (1, 28, 28)
        >>> conv = Conv((50176, 1, 0, 896, 64), (100352, 1, 0, 0, 128), size, size, (1, 3, 3), one, (0, 1, 1), one, 1, 64, 128)
        >>> cut = direct_tiling(conv, 64, 2, masked=False)
        >>> cut.constants, cut.parts
        ({'BLOCK_O': 128, 'BLOCK_K': 128, 'BLOCK_T': 64}, 5)
    """
    rows = _block(conv.outputs, 64 if masked and itemsize == 4 else 128)
    short = masked or _gathers(conv) or (itemsize == 4 and conv.columns != conv.channels)  # of registers for mask, slope or addresses
    columns = _block(conv.columns, 64 if short else 128)

    def tiles() -> int:
        return conv.groups * ceil_div(conv.outputs, rows) * ceil_div(conv.columns, columns)

    while samples * tiles() < PROGRAMS and max(rows, columns) > 2 * LEAST:
        rows, columns = (rows // 2, columns) if rows > columns else (rows, columns // 2)
    repeat = min(ceil_div(samples * tiles(), REPEATED), samples) if masked else 1
    step = min(64 if itemsize == 2 else 8 if _gathers(conv) else 16, max(power(conv.positions), LEAST))
    warps = 8 if rows * columns > 64 * 64 else 4
    return Tiling(
        tiles() * ceil_div(samples, repeat),
        tiles(),
        ceil_div(conv.columns, columns),
        repeat,
        {"BLOCK_O": rows, "BLOCK_K": columns, "BLOCK_T": step},
        launch_options(warps),
    )


def _gathers(conv: Conv) -> bool:
    """Elements of x are read one at a time: neither channels nor positions are neighbours in memory, or taps move them off the vectors."""
    return conv.x[1] != 1 and (conv.columns != conv.channels or conv.x[4] != 1)


def _block(length: int, largest: int = 128) -> int:
    """Rows or columns of a tile: as many as little waste allows."""
    return narrowed([largest >> i for i in range(largest.bit_length()) if largest >> i >= LEAST], lambda block: waste(length, block))


@functools.lru_cache(maxsize=4096)
def grouped_tiling(conv: Conv, samples: int, itemsize: int, masked: bool) -> Tiling:
    """The cut of the direct form for groups of few outputs.

    Outputs that lie next to each other in memory (channels-last) are read side by side, else positions are.

    Example:
        >>> from fastqat.ops.grad_norm.addresses import Conv
        >>> one, size = (1, 1, 1), (1, 28, 28)
        >>> conv = Conv((75264, 1, 0, 2688, 96), (75264, 1, 0, 0, 96), size, size, (1, 3, 3), one, (0, 1, 1), one, 96, 1, 1)
        >>> grouped_tiling(conv, 64, 2, masked=False).constants
        {'BLOCK_O': 32, 'BLOCK_K': 4, 'BLOCK_T': 32}
    """
    outputs = conv.groups * conv.outputs
    columns = min((8, 4, 2, 1), key=lambda block: ceil_div(conv.columns, block) * (block + 1))  # loads: of g once, of x per column
    lanes = LANE_BYTES // itemsize // columns
    if conv.grad_y[1] == 1:
        rows = narrowed([64, 32, 16], lambda block: waste(outputs, block))
    else:
        rows = max(lanes // max(min(power(conv.positions), 256), LEAST), 1)
    rows = min(rows, power(outputs))
    step = max(min(lanes // rows, power(conv.positions)), 1)
    parts = ceil_div(outputs, rows) * ceil_div(conv.columns, columns)
    repeat = min(ceil_div(samples * parts, REPEATED), samples) if masked else 1
    return Tiling(
        parts * ceil_div(samples, repeat),
        parts,
        ceil_div(conv.columns, columns),
        repeat,
        {"BLOCK_O": rows, "BLOCK_K": columns, "BLOCK_T": step},
        launch_options(4),
    )


@functools.lru_cache(maxsize=4096)
def gram_tiling(conv: Conv, samples: int, itemsize: int) -> Tiling:
    """The cut of the Gram form.

    Example:
        >>> from fastqat.ops.grad_norm.addresses import Conv
        >>> one = (1, 1, 1)
        >>> conv = Conv((25088, 1, 0, 0, 512), (25088, 1, 0, 0, 512), (1, 1, 49), (1, 1, 49), one, one, (0, 0, 0), one, 1, 512, 512)
        >>> gram_tiling(conv, 64, 2)[:2], gram_tiling(conv, 256, 2)[:2]
        ((192, 3), (256, 1))
    """
    block = max(min(power(conv.positions), GRAM), LEAST)

    def pairs() -> int:
        tiles = ceil_div(conv.positions, block)
        return tiles * (tiles + 1) // 2

    while samples * conv.groups * pairs() < PROGRAMS and block > 2 * LEAST:
        block //= 2
    depth = max(LEAST, min(32, power(max(conv.channels, conv.outputs)))) if itemsize == 2 else 8 if _gathers(conv) else 16
    parts = conv.groups * pairs()
    return Tiling(samples * parts, parts, 0, 1, {"BLOCK_P": block, "BLOCK_D": depth}, launch_options(4))


@functools.lru_cache(maxsize=4096)
def masked_row_tiling(conv: Conv, samples: int) -> Tiling:
    """The cut of masked norms with one position per sample."""
    tiles = ceil_div(conv.outputs, ROW_OUTPUTS)
    constants = {"BLOCK_N": ROW_SAMPLES, "BLOCK_O": ROW_OUTPUTS, "BLOCK_K": 32}
    return Tiling(ceil_div(samples, ROW_SAMPLES) * conv.groups * tiles, conv.groups * tiles, 1, 1, constants, launch_options(4))


def finish_tile(results: int, parts: int) -> tuple[int, int]:
    """Results of a program of the second stage, and how many parts of each it reads at once."""
    wide = min(power(parts), FINISH)
    return max(1, min(power(results), FINISH // wide)), wide
