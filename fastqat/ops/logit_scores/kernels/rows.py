"""The kernels that are launched; see ``launch.py``.

`score_rows_kernel` holds whole rows in registers. `score_long_rows_kernel` reads a row once for its sums, in lanes that each have their
own top, and once more, from the cache, to compare it with the teacher. Their common end is `finish`. Strides and lengths count units of
UNIT elements, which tells the compiler how far accesses are aligned.
"""

from __future__ import annotations

from ...._triton import jit, tl
from .finish import agreement, finish
from .lanes import lane_sums
from .tiles import (
    compare,
    exp,
    load_tile,
    log_ratio,
    none_unless_finite,
    own_sums,
    shift_between,
    student_sums,
    teacher_sums,
)


@jit(do_not_specialize=["samples"])
def score_rows_kernel(
    logits_ptr,  # [samples, classes]
    teacher_ptr,  # the same, or None
    soft_ptr,  # class probabilities, the same, or None
    targets_ptr,  # [samples] int64, or None
    scores,  # `LogitScores` of [samples] each, None where not wanted
    samples,
    units,
    logits_stride,
    teacher_stride,
    soft_stride,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
):
    """A program owns ROWS samples and holds their rows in registers: COLUMNS ≥ classes. What is read again comes PART classes at a time."""
    index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row, exists, column, classes = index[:, None], index < samples, tl.arange(0, COLUMNS)[None, :], units * UNIT
    unit = tl.full([], UNIT, tl.int64)  # a row stride may exceed 32 bits
    strides = (logits_stride * unit, teacher_stride * unit, soft_stride * unit)
    z = load_tile(logits_ptr, strides[0], row, exists[:, None], column, classes)
    if teacher_ptr is not None:
        zt = load_tile(teacher_ptr, strides[1], row, exists[:, None], column, classes)
    top = tl.max(z, axis=1)
    every, below, below_sq, weighted, second = student_sums(z, top[:, None], 1)
    own = own_sums(top, every + none_unless_finite(top), below, below_sq, weighted, second)
    if teacher_ptr is not None:
        teacher_top = tl.max(zt, axis=1)
        total, cross = teacher_sums(z, zt, top[:, None], teacher_top[:, None], 1)
        total += none_unless_finite(teacher_top)
        shift = shift_between(top, teacher_top, own[2], total)
        p = exp(z - top[:, None]) * (1.0 / (1.0 + own[2]))[:, None]
        t = exp(zt - teacher_top[:, None]) * (1.0 / total)[:, None]
        difference, divergence = compare(log_ratio(z, zt, shift[:, None], False), p, t, False)
        taught = (teacher_top, total, cross, shift, tl.sum(difference * difference, axis=1), tl.sum(divergence, axis=1))
    else:
        taught = None
    given = (logits_ptr, strides[0], teacher_ptr, strides[1], soft_ptr, strides[2], targets_ptr)
    finish(given, scores, index, exists, classes, own, taught, ROWS, PART)


@jit(do_not_specialize=["samples"])
def score_long_rows_kernel(
    logits_ptr,  # [samples, classes]
    teacher_ptr,  # the same, or None
    soft_ptr,  # class probabilities, the same, or None
    targets_ptr,  # [samples] int64, or None
    scores,  # `LogitScores` of [samples] each, None where not wanted
    samples,
    units,
    logits_stride,
    teacher_stride,
    soft_stride,
    UNIT: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
    PART: tl.constexpr,
):
    """A program owns one sample, and reads STEPS · LANES classes at a time; what is read again, PART at a time."""
    index = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    row, exists, classes = index[:, None], index < samples, units * UNIT
    unit = tl.full([], UNIT, tl.int64)  # a row stride may exceed 32 bits
    strides = (logits_stride * unit, teacher_stride * unit, soft_stride * unit)
    given = (logits_ptr, strides[0], teacher_ptr, strides[1], soft_ptr, strides[2], targets_ptr)
    own, teacher = lane_sums(given, row, classes, STEPS, LANES)
    if teacher_ptr is not None:
        shift = shift_between(own[0], teacher[0], own[2], teacher[1])
        known = (teacher[0], teacher[1], teacher[2], shift)
        _, square, divergence, _ = agreement(given, row, exists[:, None], classes, own, known, shift, False, 1, PART)
        taught = (teacher[0], teacher[1], teacher[2], shift, square, divergence)
    else:
        taught = None
    finish(given, scores, index, exists, classes, own, taught, 1, PART)
