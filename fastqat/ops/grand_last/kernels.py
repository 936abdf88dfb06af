"""Triton kernel of the last layer's gradient norm. Launched from ``launch.py``.

‖p − y‖ · √(bias + ‖h‖²) with ‖p − y‖² = (Σ_{j≠y} p_j)² + Σ_{j≠y} p_j²: the target never enters a sum, so that a sample that is
learned to the last digit keeps the digits of its small norm. fp32 inside.
"""

from __future__ import annotations

from ..._triton import jit, tl


@jit
def load_part(ptr, row, stride, exists, start, length, other, COLUMNS: tl.constexpr):
    """``[ROWS, COLUMNS]`` elements from `start` of rows at ``row * stride``, as fp32, `other` beyond their end; and the columns."""
    column = start + tl.arange(0, COLUMNS)[None, :]
    values = tl.load(ptr + row * stride + column, exists & (column < length), other=other)
    return values.to(tl.float32), column


@jit
def top_of(logits_ptr, row, stride, exists, classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """The largest logit of each row ``[ROWS, 1]``. NaN may not show here; it does in the sums."""
    top = tl.full([ROWS, CLASSES], float("-inf"), tl.float32)
    for start in range(0, classes, CLASSES):
        logits, _ = load_part(logits_ptr, row, stride, exists, start, classes, float("-inf"), CLASSES)
        top = tl.maximum(top, logits)
    return tl.max(top, axis=1)[:, None]


@jit
def error_sums(logits_ptr, row, stride, exists, classes, target, top, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """Σ e_j and Σ e_j² over the classes but the target, and e of the target, each ``[ROWS]``, with e_j = exp(z_j − top)."""
    others = tl.zeros([ROWS, CLASSES], tl.float32)
    others_sq = tl.zeros([ROWS, CLASSES], tl.float32)
    own = tl.zeros([ROWS, CLASSES], tl.float32)
    for start in range(0, classes, CLASSES):
        logits, column = load_part(logits_ptr, row, stride, exists, start, classes, float("-inf"), CLASSES)
        e = tl.where(column < classes, tl.exp(logits - top), 0.0)
        other = tl.where(column == target, 0.0, e)
        others += other
        others_sq += other * other
        own += tl.where(column == target, e, 0.0)
    return tl.sum(others, axis=1), tl.sum(others_sq, axis=1), tl.sum(own, axis=1)


@jit
def sum_of_squares(features_ptr, row, stride, exists, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """‖h‖² of each row ``[ROWS]``."""
    squares = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, width, WIDTH):
        h, _ = load_part(features_ptr, row, stride, exists, start, width, 0.0, WIDTH)
        squares += h * h
    return tl.sum(squares, axis=1)


@jit(do_not_specialize=["samples"])
def grand_last_kernel(
    logits_ptr,  # [samples, classes], rows logits_stride apart
    targets_ptr,  # [samples] int64
    features_ptr,  # [samples, width], rows features_stride apart
    norm_ptr,  # [samples] fp32
    samples,
    class_units,
    width_units,
    logits_stride,
    features_stride,
    UNIT: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program owns ROWS samples; NaN where the target is no class. Lengths and strides count UNIT elements."""
    classes, width = class_units * UNIT, width_units * UNIT
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, exists = index[:, None].to(tl.int64) * UNIT, index[:, None] < samples  # times a stride: where the row begins
    target = tl.load(targets_ptr + index, index < samples, other=0)
    squares = sum_of_squares(features_ptr, row, features_stride, exists, width, ROWS, WIDTH)
    top = top_of(logits_ptr, row, logits_stride, exists, classes, ROWS, CLASSES)
    others, others_sq, own = error_sums(logits_ptr, row, logits_stride, exists, classes, target[:, None], top, ROWS, CLASSES)
    error = tl.sqrt(others * others + others_sq) / (others + own)
    norm = error * tl.sqrt(squares + 1.0 if BIAS else squares)
    is_class = (target >= 0) & (target < classes)
    tl.store(norm_ptr + index, tl.where(is_class, norm, float("nan")), index < samples)
