"""The sums over a long row in one pass over memory: each lane has its own tops, and where a tile has a higher one its sums move to it."""

from __future__ import annotations

from ...._triton import jit, tl
from .tiles import exp, load_tile, none_unless_finite, own_sums, student_sums, teacher_sums


@jit
def fall(old, new):
    """How far a top falls behind the new one, finite also where there was none."""
    return tl.maximum(old - new, -1e30)


@jit
def moved_sums(every, below, below_sq, weighted, down):
    """`student_sums` relative to a top that is −`down` higher, which puts the old top among those below."""
    scale = exp(down)
    moves = down < 0.0
    on_top = every - below
    below_sq = tl.where(moves, scale * scale * (below_sq + on_top), below_sq)
    return scale * every, tl.where(moves, scale * every, below), below_sq, scale * (weighted + down * every)


@jit
def moved_cross(total, cross, down, teacher_down):
    """`teacher_sums` relative to tops that are −`down` (student) and −`teacher_down` higher."""
    scale = exp(teacher_down)
    return scale * total, tl.where(scale == 0.0, 0.0, scale * (cross + down * total))


@jit
def in_one(lanes):
    """The sum over all lanes ``[1]``."""
    return tl.sum(lanes, axis=0, keep_dims=True)


@jit
def joined_student(top, every, below, below_sq, weighted, second):
    """All lanes as one: `own` of ``finish.py``."""
    row_top = tl.max(top, axis=0, keep_dims=True)
    second = tl.max(tl.where(top < row_top, top, second), axis=0, keep_dims=True)
    every, below, below_sq, weighted = moved_sums(every, below, below_sq, weighted, fall(top, row_top))
    every = in_one(every) + none_unless_finite(row_top)
    return own_sums(row_top, every, in_one(below), in_one(below_sq), in_one(weighted), second)


@jit
def joined_teacher(top, row_top, teacher_top, total, cross):
    """All lanes as one: the teacher's top, Σ e and cross."""
    row_teacher_top = tl.max(teacher_top, axis=0, keep_dims=True)
    total, cross = moved_cross(total, cross, fall(top, row_top), fall(teacher_top, row_teacher_top))
    return row_teacher_top, in_one(total) + none_unless_finite(row_teacher_top), in_one(cross)


@jit
def lane_sums(given, row, classes, STEPS: tl.constexpr, LANES: tl.constexpr):
    """`own` of ``finish.py`` and the teacher's top, Σ e and cross, each ``[1]``, for one row and LANES lanes."""
    nothing = tl.zeros([LANES], tl.float32)
    top, second, teacher_top = nothing - 3.38e38, nothing - 3.4e38, nothing - 3.38e38
    every, below, below_sq, weighted, total, cross = nothing, nothing, nothing, nothing, nothing, nothing
    for start in range(0, classes, STEPS * LANES):
        column = start + tl.arange(0, STEPS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
        z = load_tile(given[0], given[1], row, True, column, classes)
        if given[2] is not None:
            zt = load_tile(given[2], given[3], row, True, column, classes)
        before = top
        top = tl.maximum(before, tl.max(z, axis=0))
        here = student_sums(z, top[None, :], 0)
        every, below, below_sq, weighted = moved_sums(every, below, below_sq, weighted, fall(before, top))
        every, below, below_sq, weighted = every + here[0], below + here[1], below_sq + here[2], weighted + here[3]
        second = tl.maximum(tl.where(before < top, before, second), here[4])
        if given[2] is not None:
            teacher_before = teacher_top
            teacher_top = tl.maximum(teacher_before, tl.max(zt, axis=0))
            more = teacher_sums(z, zt, top[None, :], teacher_top[None, :], 0)
            total, cross = moved_cross(total, cross, fall(before, top), fall(teacher_before, teacher_top))
            total, cross = total + more[0], cross + more[1]
    own = joined_student(top, every, below, below_sq, weighted, second)
    return own, joined_teacher(top, own[0], teacher_top, total, cross)
