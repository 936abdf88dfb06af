"""Triton kernels of fake quantization: forward (or codes), backward, and the second stage of the sums. Launched from ``launch.py``.

A dense tensor is `count` matrices ``[rows, width]``, cut into tiles as ``tiling.py`` says. By rows, a row has one scale: the matrices are
`outer`, the rows channels. By columns, a column has one scale: the matrices are blocks, a row is every channel, `fold` times.
Each kernel is load, pure functions of ``_triton``, store; fp32 inside. Tiles that lie whole inside the matrix are read and written
without masks, so that accesses are 128 bits wide for any length; edge tiles are masked.

The backward pass reads x and grad_y once and writes grad_x, which may be grad_y itself: every element is read and written by the same
thread, since a tile has at least as many elements as the program loads at once.

Sums: RUN terms of one scale, at most 8, are added in fp32, an error of at most 7 roundings, 7·2⁻²⁴ of their Σ|terms|; everything
after that is fp64, in an order that the shape alone fixes; then one rounding of the result: together at most 2⁻²¹ · Σ|terms|.
"""

from __future__ import annotations

from ..._triton import fake_quant, fake_quant_grad, jit, load_range, quant_code, tl


@jit
def load_tile(ptr, offsets, mask):
    """Values as fp32; 0 outside `mask`, which None leaves out."""
    values = tl.load(ptr + offsets) if mask is None else tl.load(ptr + offsets, mask, other=0.0)
    return values.to(tl.float32)


@jit
def quantize_tile(x_ptr, out_ptr, offsets, mask, scale, inv, zero, low, high, CODES: tl.constexpr, RECIPROCAL: tl.constexpr):
    """x_hat, or the codes, of one tile."""
    x = load_tile(x_ptr, offsets, mask)
    out = quant_code(x, scale, inv, zero, low, high, RECIPROCAL) if CODES else fake_quant(x, scale, inv, low, high, RECIPROCAL)
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask)


@jit
def gradient_tile(x_ptr, grad_y_ptr, grad_x_ptr, offsets, mask, scale, inv, low, high, RECIPROCAL: tl.constexpr):
    """Writes grad_x of one tile; returns the terms of both sums, 0 outside `mask`."""
    x = load_tile(x_ptr, offsets, mask)
    grad_y = load_tile(grad_y_ptr, offsets, mask)
    grad_x, scale_term, zero_term = fake_quant_grad(x, grad_y, scale, inv, low, high, RECIPROCAL)
    tl.store(grad_x_ptr + offsets, grad_x.to(grad_x_ptr.dtype.element_ty), mask)
    if mask is not None:
        scale_term = tl.where(mask, scale_term, 0.0)
        zero_term = tl.where(mask, zero_term, 0.0)
    return scale_term, zero_term


@jit
def tile_at(matrix, row, column, rows, width, total, ALIGN: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile at (`row`, `column`) of a matrix: where it begins, offsets from there, its mask, and whether it lies whole inside.

    ALIGN divides `width`, a fact that the compiler needs for wide accesses; 0: there is one row. WIDE: offsets take 64 bits.
    `total`: elements of a matrix whose last row is not whole, else None.
    """
    tile_row, tile_column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    rows_left, columns_left = tl.minimum(rows - row, ROWS).to(tl.int32), tl.minimum(width - column, COLUMNS).to(tl.int32)
    if ALIGN == 0:
        stride = width * 0
    else:
        stride = width // ALIGN * ALIGN
        columns_left = columns_left // ALIGN * ALIGN
    offsets = tile_row.to(tl.int64) * stride + tile_column if WIDE else tile_row * stride.to(tl.int32) + tile_column
    begin = (matrix.to(tl.int64) * rows + row) * stride + column
    mask = (tile_row < rows_left) & (tile_column < columns_left)
    whole = (rows_left == ROWS) & (columns_left == COLUMNS)
    if total is not None:
        mask = mask & (row * stride + column + offsets < total)
        whole = whole & ((row + ROWS) * width <= total)
    return begin, offsets, mask, whole


@jit
def column_scales(matrix, columns, width, channels, inner):
    """Which scale each of the `columns` uses, and which of them exist. `inner` None: a row is the channels, once."""
    index = columns.to(width.dtype)  # 64 bits only where they are needed: these divisions are the dearest instructions here
    index = index if inner is None else index // inner % channels
    return matrix.to(tl.int64) * channels + index, columns < width


@jit(do_not_specialize=["rows", "width", "total", "channels", "inner", "qmin", "qmax"])
def fake_quant_kernel(
    x_ptr,  # [count, rows, width]
    out_ptr,  # the same: x_hat, or codes
    scale_ptr,
    zero_point_ptr,  # or None
    rows,
    width,
    total,
    channels,
    inner,
    qmin,
    qmax,
    CODES: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """x_hat = (clamp(RNE(v) + z, qmin, qmax) − z)·s, or the codes; one program owns one tile."""
    program = tl.program_id(0)
    if ALIGN == 0 and ROWS == 1:  # one row: no divisions
        column, row, matrix = program.to(tl.int64) * COLUMNS, tl.full([], 0, tl.int64), tl.full([], 0, tl.int32)
    else:
        row_tiles, column_tiles = tl.cdiv(rows, ROWS), tl.cdiv(width, COLUMNS)
        column = (program % column_tiles).to(tl.int64) * COLUMNS
        row = (program // column_tiles % row_tiles).to(tl.int64) * ROWS
        matrix = program // column_tiles // row_tiles
    if BY_COLUMN:
        index, exists = column_scales(matrix, column + tl.arange(0, COLUMNS), width, channels, inner)
        index, exists = index[None, :], exists[None, :]
    else:
        index = row + tl.arange(0, ROWS)[:, None]
        exists = index < rows
    scale, inv, zero, low, high = load_range(scale_ptr, zero_point_ptr, index, exists, qmin, qmax)
    begin, offsets, mask, whole = tile_at(matrix, row, column, rows, width, total, ALIGN, WIDE, ROWS, COLUMNS)
    if EVEN or whole:
        quantize_tile(x_ptr + begin, out_ptr + begin, offsets, None, scale, inv, zero, low, high, CODES, RECIPROCAL)
    else:
        quantize_tile(x_ptr + begin, out_ptr + begin, offsets, mask, scale, inv, zero, low, high, CODES, RECIPROCAL)


@jit
def add_run(sums, terms, RUN: tl.constexpr, BY_COLUMN: tl.constexpr):
    """`sums` in fp64 plus `terms` in fp32, of which RUN in a row (by column: RUN equally spaced in a column) are added first."""
    ROWS: tl.constexpr = terms.shape[0]
    COLUMNS: tl.constexpr = terms.shape[1]
    if BY_COLUMN:
        run = tl.sum(tl.reshape(terms, [RUN, ROWS // RUN, COLUMNS]), axis=0)
    else:
        run = tl.sum(tl.reshape(terms, [ROWS, COLUMNS // RUN, RUN]), axis=2)
    return sums + run.to(tl.float64)


@jit
def store_sum(sum_ptr, index, exists, total, factor):
    """`total` times `factor`, as the fp32 gradient or as an fp64 partial."""
    tl.store(sum_ptr + index, (total * factor).to(sum_ptr.dtype.element_ty), exists)


@jit(do_not_specialize=["count", "rows", "width", "steps", "qmin", "qmax"])
def fake_quant_backward_rows_kernel(
    x_ptr,  # [count, rows, width]
    grad_y_ptr,  # the same
    grad_x_ptr,  # the same; may be grad_y
    scale_ptr,  # [rows]
    zero_point_ptr,  # [rows] or None
    scale_sum_ptr,  # [chunks, rows] fp64, or the gradient [rows] fp32; None: not wanted
    zero_point_sum_ptr,  # the same
    count,
    rows,
    width,
    steps,
    qmin,
    qmax,
    factor,
    RECIPROCAL: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """grad_x and both sums; one program owns ROWS scales and `steps` of the tiles that use them, through the matrices in order."""
    program = tl.program_id(0)
    row_tiles, column_tiles = tl.cdiv(rows, ROWS), tl.cdiv(width, COLUMNS)
    row, chunk = (program % row_tiles).to(tl.int64) * ROWS, program // row_tiles
    index = row + tl.arange(0, ROWS)
    scale, inv, _, low, high = load_range(scale_ptr, zero_point_ptr, index[:, None], index[:, None] < rows, qmin, qmax)
    scale_sum = tl.zeros([ROWS, COLUMNS // RUN], tl.float64)
    zero_sum = tl.zeros([ROWS, COLUMNS // RUN], tl.float64)
    first, end = chunk * steps, tl.minimum((chunk + 1) * steps, count * column_tiles)
    matrix, column = first // column_tiles, (first % column_tiles).to(tl.int64) * COLUMNS
    for _ in range(first, end):
        begin, offsets, mask, whole = tile_at(matrix, row, column, rows, width, None, ALIGN, WIDE, ROWS, COLUMNS)
        if EVEN or whole:
            term, zero_term = gradient_tile(
                x_ptr + begin, grad_y_ptr + begin, grad_x_ptr + begin, offsets, None, scale, inv, low, high, RECIPROCAL
            )
        else:
            term, zero_term = gradient_tile(
                x_ptr + begin, grad_y_ptr + begin, grad_x_ptr + begin, offsets, mask, scale, inv, low, high, RECIPROCAL
            )
        scale_sum = add_run(scale_sum, term, RUN, False)
        zero_sum = add_run(zero_sum, zero_term, RUN, False)
        last = column + COLUMNS >= width
        matrix, column = matrix + last.to(tl.int32), tl.where(last, 0, column + COLUMNS)
    if scale_sum_ptr is not None:
        store_sum(scale_sum_ptr, chunk.to(tl.int64) * rows + index, index < rows, tl.sum(scale_sum, axis=1), factor)
    if zero_point_sum_ptr is not None:
        store_sum(zero_point_sum_ptr, chunk.to(tl.int64) * rows + index, index < rows, tl.sum(zero_sum, axis=1), factor)


@jit(do_not_specialize=["rows", "width", "total", "channels", "inner", "chunks", "steps", "qmin", "qmax"])
def fake_quant_backward_columns_kernel(
    x_ptr,  # [count, rows, width]
    grad_y_ptr,  # the same
    grad_x_ptr,  # the same; may be grad_y
    scale_ptr,  # [count, channels]
    zero_point_ptr,  # [count, channels] or None
    scale_sum_ptr,  # [count, chunks, width] fp64, or the gradient [count, width] fp32; None: not wanted
    zero_point_sum_ptr,  # the same
    rows,
    width,
    total,
    channels,
    inner,
    chunks,
    steps,
    qmin,
    qmax,
    factor,
    RECIPROCAL: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """grad_x and both sums; one program owns COLUMNS columns of a matrix and `steps` tiles of them, from the top down."""
    program = tl.program_id(0)
    row_tiles, column_tiles = tl.cdiv(rows, ROWS), tl.cdiv(width, COLUMNS)
    column, matrix = (program % column_tiles).to(tl.int64) * COLUMNS, program // column_tiles // chunks
    chunk = program // column_tiles % chunks
    columns = column + tl.arange(0, COLUMNS)
    index, exists = column_scales(matrix, columns, width, channels, inner)
    scale, inv, _, low, high = load_range(scale_ptr, zero_point_ptr, index[None, :], exists[None, :], qmin, qmax)
    scale_sum = tl.zeros([ROWS // RUN, COLUMNS], tl.float64)
    zero_sum = tl.zeros([ROWS // RUN, COLUMNS], tl.float64)
    tile_rows = tl.full([], ROWS, tl.int64)
    for step in range(chunk * steps, tl.minimum((chunk + 1) * steps, row_tiles)):
        begin, offsets, mask, whole = tile_at(matrix, step * tile_rows, column, rows, width, total, ALIGN, WIDE, ROWS, COLUMNS)
        if EVEN or whole:
            term, zero_term = gradient_tile(
                x_ptr + begin, grad_y_ptr + begin, grad_x_ptr + begin, offsets, None, scale, inv, low, high, RECIPROCAL
            )
        else:
            term, zero_term = gradient_tile(
                x_ptr + begin, grad_y_ptr + begin, grad_x_ptr + begin, offsets, mask, scale, inv, low, high, RECIPROCAL
            )
        scale_sum = add_run(scale_sum, term, RUN, True)
        zero_sum = add_run(zero_sum, zero_term, RUN, True)
    position = (matrix.to(tl.int64) * chunks + chunk) * width + columns
    if scale_sum_ptr is not None:
        store_sum(scale_sum_ptr, position, exists, tl.sum(scale_sum, axis=0), factor)
    if zero_point_sum_ptr is not None:
        store_sum(zero_point_sum_ptr, position, exists, tl.sum(zero_sum, axis=0), factor)


@jit(do_not_specialize=["scales", "channels", "repeats"])
def fake_quant_finish_kernel(
    scale_sum_ptr,  # [count, repeats, channels, run] fp64 partials
    zero_point_sum_ptr,  # the same, or None
    grad_scale_ptr,  # [count, channels] fp32
    grad_zero_point_ptr,  # the same, or None
    scales,  # count · channels
    channels,
    repeats,
    run,
    factor,
    SCALES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """grad[b, c] = factor · Σ over r, i of partial[b, r, c, i]; one program owns SCALES scales and reads PARTS partials of each at once."""
    index = tl.program_id(0).to(tl.int64) * SCALES + tl.arange(0, SCALES)
    first = index // channels * (repeats * channels * run) + index % channels * run
    scale_sum = tl.zeros([SCALES, PARTS], tl.float64)
    zero_sum = tl.zeros([SCALES, PARTS], tl.float64)
    for start in range(0, repeats * run, PARTS):
        part = start + tl.arange(0, PARTS)
        offsets = first[:, None] + (part // run * (channels * run) + part % run)[None, :]
        mask = (index < scales)[:, None] & (part < repeats * run)[None, :]
        if grad_scale_ptr is not None:
            scale_sum += tl.load(scale_sum_ptr + offsets, mask, other=0.0)
        if grad_zero_point_ptr is not None:
            zero_sum += tl.load(zero_point_sum_ptr + offsets, mask, other=0.0)
    if grad_scale_ptr is not None:
        store_sum(grad_scale_ptr, index, index < scales, tl.sum(scale_sum, axis=1), factor)
    if grad_zero_point_ptr is not None:
        store_sum(grad_zero_point_ptr, index, index < scales, tl.sum(zero_sum, axis=1), factor)
