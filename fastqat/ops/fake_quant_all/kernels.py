"""Triton kernels of fake quantization of many tensors: forward, backward, and the second stage of the sums, one launch each.

What the programs must know of the tensors is a table on the device, int64 ``[fields, TENSORS]`` with a column per tensor: addresses,
sizes, ranges, and the first program that works for it. TENSORS is a power of two; columns that are not used begin beyond all programs.

A dense tensor is `rows` runs of `inner` neighbours that share a scale. Each is cut into `pieces` of COLUMNS elements, and ROWS pieces,
neighbours in memory, are the tile of one program. Of a long row `pieces` is rounded up, so that no tile holds two of them. Where all rows
begin on vector boundaries, whole tiles are read and written without masks, 128 bits at a time; everything else is masked.

Sums: RUN terms are added in fp32, then all in fp64: one partial per piece, or per tile of a long row. The order depends on the shape only.
"""

from __future__ import annotations

from ..._triton import jit, round_half_even_any, tl
from ..fake_quant.kernels import add_run, gradient_tile, quantize_tile, store_sum

constant = int if tl is None else tl.constexpr

# The rows of the table.
FIRST = constant(0)  # program of the forward and backward pass
FIRST_FINISH = constant(1)  # program of the second stage of the sums
ROWS_OF_TENSOR = constant(2)
INNER = constant(3)
PIECES = constant(4)  # of a row
ALIGNED = constant(5)  # 1: every row begins on a vector boundary
LONG = constant(6)  # 1: `pieces` is rounded up to whole tiles
CHANNELS = constant(7)
OUTER = constant(8)  # row (b, o, c) of [blocks, outer, channels] uses scale b · channels + c
QMIN = constant(9)
QMAX = constant(10)
X = constant(11)  # from here to GRAD_ZERO_POINT: addresses, 0 for what there is not
OUT = constant(12)  # x_hat or grad_x
GRAD_Y = constant(13)
SCALE = constant(14)
ZERO_POINT = constant(15)
GRAD_SCALE = constant(16)
GRAD_ZERO_POINT = constant(17)
SCALE_PARTIALS = constant(18)  # index of the first one, −1: not wanted
ZERO_POINT_PARTIALS = constant(19)  # the same
SCALES_OF_TENSOR = constant(20)
RUN_OF_ROW = constant(21)  # partials of a row
FACTOR = constant(22)  # bits of an fp64


@jit
def entry(column_ptr, field, TENSORS: tl.constexpr):
    """What the table says in a column."""
    return tl.load(column_ptr + field * TENSORS)


@jit
def find(table_ptr, field, program, TENSORS: tl.constexpr):
    """The column that `program` works for, the last that begins not after it, and the number of the program within it."""
    firsts = tl.load(table_ptr + field * TENSORS + tl.arange(0, TENSORS))
    column_ptr = table_ptr + tl.sum((firsts <= program).to(tl.int32), axis=0) - 1
    return column_ptr, program - entry(column_ptr, field, TENSORS)


@jit
def pointer(address, TYPE: tl.constexpr):
    """An address of the table as a pointer. Those that are no multiple of 16 are never used without masks, element by element."""
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16)


@jit
def tile_of(column_ptr, tile, TENSORS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The pieces of a tile: their rows and offsets, which of them exist, the mask of the elements, and whether the tile is whole.

    Within a tile 32 bits are enough, and half the registers: rows and pieces of a row are fewer than 2³¹.
    """
    rows, inner = entry(column_ptr, ROWS_OF_TENSOR, TENSORS), entry(column_ptr, INNER, TENSORS)
    pieces, aligned = entry(column_ptr, PIECES, TENSORS), entry(column_ptr, ALIGNED, TENSORS)
    first, last = tile * ROWS, tile * ROWS + ROWS - 1
    whole = (aligned != 0) & (last // pieces < rows) & (last % pieces * COLUMNS + COLUMNS <= inner)
    number = (first % pieces).to(tl.int32) + tl.arange(0, ROWS)
    row = (first // pieces).to(tl.int32) + number // pieces.to(tl.int32)
    start = (number % pieces.to(tl.int32)).to(tl.int64) * COLUMNS
    exists = (row < rows) & (start < inner)
    mask = exists[:, None] & (tl.arange(0, COLUMNS)[None, :] < (inner - start)[:, None])
    return row, row * inner + start, exists, mask, whole


@jit
def ranges_of(column_ptr, row, exists, TENSORS: tl.constexpr):
    """Scale, fp32(1/s), zero point, and the bounds qmin − z and qmax − z of each of the rows, as columns of a tile."""
    channels, outer = entry(column_ptr, CHANNELS, TENSORS), entry(column_ptr, OUTER, TENSORS)
    scale_ptr = pointer(entry(column_ptr, SCALE, TENSORS), tl.float32)
    zero_point = entry(column_ptr, ZERO_POINT, TENSORS)
    per_block, channels = (outer * channels).to(tl.int32), channels.to(tl.int32)
    index = (row // per_block * channels + row % channels)[:, None]
    scale = tl.load(scale_ptr + index, exists[:, None], other=1.0)
    inv = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    zero = tl.zeros(scale.shape, tl.float32)
    if zero_point != 0:
        zero = round_half_even_any(tl.load(pointer(zero_point, tl.float32) + index, exists[:, None], other=0.0))
    qmin, qmax = entry(column_ptr, QMIN, TENSORS), entry(column_ptr, QMAX, TENSORS)
    return scale, inv, zero, qmin.to(tl.float32) - zero, qmax.to(tl.float32) - zero


@jit
def fake_quant_all_kernel(
    table_ptr, TYPE: tl.constexpr, RECIPROCAL: tl.constexpr, TENSORS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """x_hat = (clamp(RNE(v) + z, qmin, qmax) − z)·s of all tensors; one program owns one tile of one of them."""
    column_ptr, tile = find(table_ptr, FIRST, tl.program_id(0), TENSORS)
    row, start, exists, mask, whole = tile_of(column_ptr, tile, TENSORS, ROWS, COLUMNS)
    scale, inv, zero, low, high = ranges_of(column_ptr, row, exists, TENSORS)
    x_ptr = pointer(entry(column_ptr, X, TENSORS), TYPE)
    x_hat_ptr = pointer(entry(column_ptr, OUT, TENSORS), TYPE)
    if whole:
        offsets = (start // COLUMNS * COLUMNS)[:, None] + tl.arange(0, COLUMNS)[None, :]  # multiples of COLUMNS: the compiler must see it
        quantize_tile(x_ptr, x_hat_ptr, offsets, None, scale, inv, zero, low, high, False, RECIPROCAL)
    else:
        offsets = start[:, None] + tl.arange(0, COLUMNS)[None, :]
        quantize_tile(x_ptr, x_hat_ptr, offsets, mask, scale, inv, zero, low, high, False, RECIPROCAL)


@jit
def store_partials(partial_ptr, first, tile, exists, terms, long, RUN: tl.constexpr):
    """One fp64 partial per piece, or per tile of a long row; `first` < 0: not wanted."""
    ROWS: tl.constexpr = terms.shape[0]
    sums = tl.sum(add_run(tl.zeros([ROWS, terms.shape[1] // RUN], tl.float64), terms, RUN, False), axis=1)
    if first >= 0:
        if long != 0:
            tl.store(partial_ptr + first + tile, tl.sum(sums, axis=0))
        else:
            tl.store(partial_ptr + first + tile * ROWS + tl.arange(0, ROWS), sums, exists)


@jit
def fake_quant_all_backward_kernel(
    table_ptr,
    partial_ptr,  # [partials of all sums] fp64
    TYPE: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    TENSORS: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """grad_x of all tensors, and the partials of their sums; one program owns one tile of one of them."""
    column_ptr, tile = find(table_ptr, FIRST, tl.program_id(0), TENSORS)
    row, start, exists, mask, whole = tile_of(column_ptr, tile, TENSORS, ROWS, COLUMNS)
    scale, inv, _, low, high = ranges_of(column_ptr, row, exists, TENSORS)
    x_ptr = pointer(entry(column_ptr, X, TENSORS), TYPE)
    grad_x_ptr = pointer(entry(column_ptr, OUT, TENSORS), TYPE)
    grad_y_ptr = pointer(entry(column_ptr, GRAD_Y, TENSORS), TYPE)
    if whole:
        offsets = (start // COLUMNS * COLUMNS)[:, None] + tl.arange(0, COLUMNS)[None, :]
        term, zero_term = gradient_tile(x_ptr, grad_y_ptr, grad_x_ptr, offsets, None, scale, inv, low, high, RECIPROCAL)
    else:
        offsets = start[:, None] + tl.arange(0, COLUMNS)[None, :]
        term, zero_term = gradient_tile(x_ptr, grad_y_ptr, grad_x_ptr, offsets, mask, scale, inv, low, high, RECIPROCAL)
    long = entry(column_ptr, LONG, TENSORS)
    store_partials(partial_ptr, entry(column_ptr, SCALE_PARTIALS, TENSORS), tile, exists, term, long, RUN)
    store_partials(partial_ptr, entry(column_ptr, ZERO_POINT_PARTIALS, TENSORS), tile, exists, zero_term, long, RUN)


@jit
def finish_scales(column_ptr, tile, partial_ptr, TENSORS: tl.constexpr, SCALES: tl.constexpr, PARTS: tl.constexpr):
    """Both sums of SCALES scales of a tensor, PARTS partials of each at once."""
    channels, outer = entry(column_ptr, CHANNELS, TENSORS), entry(column_ptr, OUTER, TENSORS)
    scales, run = entry(column_ptr, SCALES_OF_TENSOR, TENSORS), entry(column_ptr, RUN_OF_ROW, TENSORS)
    factor = entry(column_ptr, FACTOR, TENSORS).to(tl.float64, bitcast=True)
    index = tile * SCALES + tl.arange(0, SCALES)
    begin = index // channels * (outer * channels * run) + index % channels * run
    for which in tl.static_range(2):
        first = entry(column_ptr, SCALE_PARTIALS + which, TENSORS)
        if first >= 0:
            total = tl.zeros([SCALES, PARTS], tl.float64)
            for done in range(0, outer * run, PARTS):
                part = done + tl.arange(0, PARTS)
                offsets = begin[:, None] + (part // run * (channels * run) + part % run)[None, :]
                mask = (index < scales)[:, None] & (part < outer * run)[None, :]
                total += tl.load(partial_ptr + first + offsets, mask, other=0.0)
            grad_ptr = pointer(entry(column_ptr, GRAD_SCALE + which, TENSORS), tl.float32)
            store_sum(grad_ptr, index, index < scales, tl.sum(total, axis=1), factor)


@jit
def fake_quant_all_finish_kernel(table_ptr, partial_ptr, TENSORS: tl.constexpr, MANY: tl.constexpr, LANES: tl.constexpr):
    """grad[b, c] = factor · Σ over o, i of partial[b, o, c, i] for both sums of all tensors; one program owns some scales of one tensor.

    LANES partials are read at once: MANY of a few scales where a scale has as many, else a few of many scales.
    """
    column_ptr, tile = find(table_ptr, FIRST_FINISH, tl.program_id(0), TENSORS)
    if entry(column_ptr, OUTER, TENSORS) * entry(column_ptr, RUN_OF_ROW, TENSORS) >= MANY:
        finish_scales(column_ptr, tile, partial_ptr, TENSORS, LANES // MANY, MANY)
    else:
        finish_scales(column_ptr, tile, partial_ptr, TENSORS, MANY, LANES // MANY)
