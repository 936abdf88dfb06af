"""Triton kernels of the divergence of feature maps, launched from ``launch.py``: one read of both maps, fp32 sums, no atomics.

Maps are ``[N, C, L]``; a row is the L values of a channel of a sample. A program owns ROWS channels of a sample and COLUMNS of their
positions, and holds both tiles in registers. A row that is longer than a tile is several parts, which the chain rule joins: with P the
parts and w their shares of both distributions,

    KL(p ‖ t) = Σ_P w_P KL(p | P ‖ t | P) + KL(w ‖ w_t),

so that no part waits for another, and nothing is subtracted. A row leaves its divergence, the largest value of student and of teacher, the
student's total Σ e with e = exp(value − largest value), and the shift, the logarithm of that total over the teacher's; a part leaves both
totals. Strides and the length of what is contiguous count units of UNIT elements, which tells the compiler how far accesses are aligned.
"""

from __future__ import annotations

from ..._triton import jit, tl
from ..logit_scores.kernels.tiles import compare, exp, log1p


@jit
def place_of(sample, channel, position, strides, UNIT: tl.constexpr, CHANNELS_INNER: tl.constexpr):
    """Where the values of a tile lie; `strides`: of samples, and of channels or positions, in units."""
    unit = tl.full([], UNIT, tl.int64)
    outer = strides[1] * unit
    return sample * (strides[0] * unit) + (channel + position * outer if CHANNELS_INNER else channel * outer + position)


@jit
def load_tile(ptr, sample, channel, position, strides, channels, positions, OTHER: tl.constexpr, UNIT: tl.constexpr, INNER: tl.constexpr):
    """``[ROWS, COLUMNS]`` values as fp32, OTHER where there are none."""
    mask = (channel < channels) & (position < positions)
    return tl.load(ptr + place_of(sample, channel, position, strides, UNIT, INNER), mask, other=OTHER).to(tl.float32)


@jit
def tile_of(outer, inner, blocks, parts, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_INNER: tl.constexpr):
    """What the program owns: sample, channels ``[ROWS, 1]``, positions ``[1, COLUMNS]``, part; and how many channels and positions are."""
    program = tl.program_id(0).to(tl.int64)
    part, block, sample = program % parts, program // parts % blocks, program // parts // blocks
    channel = block * ROWS + tl.arange(0, ROWS)[:, None]
    position = part * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    others, neighbours = tl.full([], 1, tl.int64) * outer, tl.full([], UNIT, tl.int64) * inner
    if CHANNELS_INNER:
        return sample, channel, position, part, neighbours, others
    return sample, channel, position, part, others, neighbours


@jit
def fall(value, top):
    """value − top ≤ 0, −inf for a value of −inf even where the top is none too."""
    return tl.where(value == float("-inf"), value, value - top)


@jit
def shift_between(total, teacher_total):
    """log Σ e of the student − that of the teacher, 0 where the teacher's is 0: the values then tell that all is infinite."""
    return tl.where(teacher_total == 0.0, 0.0, log1p((total - teacher_total) / teacher_total))


@jit
def none_of_nothing(divergence, total, teacher_total):
    """NaN where a map has no value above −inf."""
    return tl.where((total == 0.0) | (teacher_total == 0.0), float("nan"), divergence)


@jit
def store_numbers(row_ptr, saved_ptr, place, plane, mask, divergence, top, teacher_top, total, last):
    """The five numbers of each of a tile's rows or parts; `last`: the shift of a row, the teacher's total of a part."""
    tl.store(row_ptr + place, divergence, mask)
    tl.store(saved_ptr + place, top, mask)
    tl.store(saved_ptr + plane + place, teacher_top, mask)
    tl.store(saved_ptr + 2 * plane + place, total, mask)
    tl.store(saved_ptr + 3 * plane + place, last, mask)


@jit(do_not_specialize=["blocks", "parts", "rows"])
def feature_kl_kernel(
    student_ptr,  # [N, C, L]
    teacher_ptr,  # [N, C, L]
    row_ptr,  # [N · C, parts]: KL(p ‖ t) within each part
    saved_ptr,  # [4, N · C, parts]
    strides,  # of student: samples; channels, or positions where channels are neighbours
    teacher_strides,
    outer,  # how many channels, or positions
    inner,  # how many units of the other
    blocks,
    parts,
    rows,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
):
    """Σ p u − p + t with u = log(p / t): no term is below 0, so that close maps lose no digits to those that are not."""
    sample, channel, position, part, channels, positions = tile_of(outer, inner, blocks, parts, UNIT, ROWS, COLUMNS, CHANNELS_INNER)
    x = load_tile(student_ptr, sample, channel, position, strides, channels, positions, float("-inf"), UNIT, CHANNELS_INNER)
    t = load_tile(teacher_ptr, sample, channel, position, teacher_strides, channels, positions, float("-inf"), UNIT, CHANNELS_INNER)
    top, teacher_top = tl.max(x, axis=1, keep_dims=True), tl.max(t, axis=1, keep_dims=True)
    d, dt = fall(x, top), fall(t, teacher_top)
    e, et = exp(d), exp(dt)
    total, teacher_total = tl.sum(e, axis=1, keep_dims=True), tl.sum(et, axis=1, keep_dims=True)
    shift = shift_between(total, teacher_total)
    _, terms = compare((d - dt) - shift, e * (1.0 / total), et * (1.0 / teacher_total), True)
    divergence = none_of_nothing(tl.sum(terms, axis=1, keep_dims=True), total, teacher_total)
    place = (sample * channels + channel) * parts + part
    last = tl.where(parts > 1, teacher_total, shift)
    store_numbers(row_ptr, saved_ptr, place, rows.to(tl.int64) * parts, channel < channels, divergence, top, teacher_top, total, last)


@jit
def load_share(part_ptr, place, plane, mask, top):
    """Of parts: how far their largest value falls behind that of the row, and Σ e; `part_ptr`: to the tops of student or teacher."""
    d = fall(tl.load(part_ptr + place, mask, other=float("-inf")), top)
    return d, tl.load(part_ptr + 2 * plane + place, mask, other=0.0)


@jit(do_not_specialize=["rows", "parts"])
def feature_kl_finish_kernel(
    part_row_ptr,  # [rows, parts]
    part_saved_ptr,  # [4, rows, parts]: both tops, both totals
    row_ptr,  # [rows]
    saved_ptr,  # [4, rows]
    rows,
    parts,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The parts of ROWS rows as one, by the chain rule; PARTS of them at a time."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    plane = rows.to(tl.int64) * parts
    top = tl.full([ROWS, PARTS], float("-inf"), tl.float32)
    teacher_top = top
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)[None, :]
        place, mask = row * parts + part, (row < rows) & (part < parts)
        top = tl.maximum(top, tl.load(part_saved_ptr + place, mask, other=float("-inf")))
        teacher_top = tl.maximum(teacher_top, tl.load(part_saved_ptr + plane + place, mask, other=float("-inf")))
    top, teacher_top = tl.max(top, axis=1, keep_dims=True), tl.max(teacher_top, axis=1, keep_dims=True)
    total, teacher_total = tl.zeros([ROWS, PARTS], tl.float32), tl.zeros([ROWS, PARTS], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)[None, :]
        place, mask = row * parts + part, (row < rows) & (part < parts)
        d, e = load_share(part_saved_ptr, place, plane, mask, top)
        dt, et = load_share(part_saved_ptr + plane, place, plane, mask, teacher_top)
        total, teacher_total = total + exp(d) * e, teacher_total + exp(dt) * et
    total, teacher_total = tl.sum(total, axis=1, keep_dims=True), tl.sum(teacher_total, axis=1, keep_dims=True)
    shift = shift_between(total, teacher_total)
    terms = tl.zeros([ROWS, PARTS], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)[None, :]
        place, mask = row * parts + part, (row < rows) & (part < parts)
        d, e = load_share(part_saved_ptr, place, plane, mask, top)
        dt, et = load_share(part_saved_ptr + plane, place, plane, mask, teacher_top)
        p, q = exp(d) * e * (1.0 / total), exp(dt) * et * (1.0 / teacher_total)
        _, between = compare((d - dt) + (shift_between(e, et) - shift), p, q, True)
        within = tl.load(part_row_ptr + place, mask, other=0.0)
        terms += between + tl.where((p > 0.0) & (et > 0.0), p * within, 0.0)
    divergence = none_of_nothing(tl.sum(terms, axis=1, keep_dims=True), total, teacher_total)
    store_numbers(row_ptr, saved_ptr, row, rows.to(tl.int64), row < rows, divergence, top, teacher_top, total, shift)


@jit(do_not_specialize=["blocks", "parts", "rows"])
def feature_kl_backward_kernel(
    grad_row_ptr,  # [N · C]
    student_ptr,  # [N, C, L]
    teacher_ptr,  # [N, C, L]
    row_ptr,  # [N · C]
    saved_ptr,  # [4, N · C]
    grad_x_ptr,  # [N, C, L]
    strides,  # as above
    teacher_strides,
    grad_strides,
    outer,
    inner,
    blocks,
    parts,
    rows,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
):
    """grad_x = grad_row · p (u − KL), 0 where p is 0."""
    sample, channel, position, _, channels, positions = tile_of(outer, inner, blocks, parts, UNIT, ROWS, COLUMNS, CHANNELS_INNER)
    x = load_tile(student_ptr, sample, channel, position, strides, channels, positions, 0.0, UNIT, CHANNELS_INNER)
    t = load_tile(teacher_ptr, sample, channel, position, teacher_strides, channels, positions, 0.0, UNIT, CHANNELS_INNER)
    row, exists, plane = sample * channels + channel, channel < channels, rows.to(tl.int64)
    divergence = tl.load(row_ptr + row, exists, other=0.0)
    grad_row = tl.load(grad_row_ptr + row, exists, other=0.0)
    top = tl.load(saved_ptr + row, exists, other=0.0)
    teacher_top = tl.load(saved_ptr + plane + row, exists, other=0.0)
    p = exp(x - top) * (1.0 / tl.load(saved_ptr + 2 * plane + row, exists, other=1.0))
    shift = tl.load(saved_ptr + 3 * plane + row, exists, other=0.0)
    slope = grad_row * p * (((x - top) - (t - teacher_top)) - shift - divergence)
    grad_x = tl.where(p == 0.0, p, slope)
    place = place_of(sample, channel, position, grad_strides, UNIT, CHANNELS_INNER)
    tl.store(grad_x_ptr + place, grad_x.to(grad_x_ptr.dtype.element_ty), exists & (position < positions))


@jit(do_not_specialize=["blocks", "parts", "rows"])
def feature_means_kernel(
    student_ptr,  # [N, C, L]
    teacher_ptr,  # [N, C, L]
    mean_ptr,  # [2, N · C, parts]
    share,  # 1 / L
    strides,  # as above
    teacher_strides,
    outer,
    inner,
    blocks,
    parts,
    rows,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
):
    """What each part adds to the means over all positions, of student and teacher."""
    sample, channel, position, part, channels, positions = tile_of(outer, inner, blocks, parts, UNIT, ROWS, COLUMNS, CHANNELS_INNER)
    x = load_tile(student_ptr, sample, channel, position, strides, channels, positions, 0.0, UNIT, CHANNELS_INNER)
    t = load_tile(teacher_ptr, sample, channel, position, teacher_strides, channels, positions, 0.0, UNIT, CHANNELS_INNER)
    place = (sample * channels + channel) * parts + part
    tl.store(mean_ptr + place, tl.sum(x, axis=1, keep_dims=True) * share, channel < channels)
    tl.store(mean_ptr + rows.to(tl.int64) * parts + place, tl.sum(t, axis=1, keep_dims=True) * share, channel < channels)
