"""From the sums of `ROWS` rows to their scores: what both kernels end with.

Shared arguments: `given` = (logits, its stride, teacher, its stride, soft targets, their stride, targets), with None for what is not
given; `own` from `own_sums`; `taught` = (top of the teacher, Σ e, Σ e (z − top), shift, Σ (p − t)², Σ p u − p + t).
"""

from __future__ import annotations

from ...._triton import jit, tl
from .tiles import compare, exp, expm1, load_tile, log1p, log_ratio


@jit
def agreement(given, row, exists, classes, own, taught, shift, EXACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Σ p − t, Σ (p − t)², Σ p u − p + t and Σ t (z − top), ``[ROWS]`` each, in one more pass over both rows."""
    difference = tl.zeros([ROWS, COLUMNS], tl.float32)
    square = tl.zeros([ROWS, COLUMNS], tl.float32)
    divergence = tl.zeros([ROWS, COLUMNS], tl.float32)
    cross = tl.zeros([ROWS, COLUMNS], tl.float32)
    to_p, to_t = 1.0 / (1.0 + own[2]), 1.0 / taught[1]
    for start in range(0, classes, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        z = load_tile(given[0], given[1], row, exists, column, classes)
        zt = load_tile(given[2], given[3], row, exists, column, classes)
        d = z - own[0][:, None]
        p, t = exp(d) * to_p[:, None], exp(zt - taught[0][:, None]) * to_t[:, None]
        apart, less = compare(log_ratio(z, zt, shift[:, None], EXACT), p, t, EXACT)
        difference += apart
        square += apart * apart
        divergence += less
        cross += tl.where(t > 0.0, t * d, 0.0)
    return tl.sum(difference, axis=1), tl.sum(square, axis=1), tl.sum(divergence, axis=1), tl.sum(cross, axis=1)


@jit
def careful_agreement(given, row, exists, classes, own, taught, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The last three sums near agreement. Σ p − t tells by how much the fp32 normalisers put the shift off, so all is done twice."""
    shift = taught[3]
    difference = tl.zeros([ROWS], tl.float32)
    square, divergence, cross = difference, difference, difference
    for _ in range(2):
        error = difference.to(tl.float64)
        shift += error - 0.5 * error * error
        difference, square, divergence, cross = agreement(given, row, exists, classes, own, taught, shift, True, ROWS, COLUMNS)
    return square, divergence, cross


@jit
def finish_teacher(given, scores, index, exists, classes, own, taught, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ds, res and kd. The sums in `taught` stand where neither the normalisers nor the rounding of z − zt show in them, nor a mask."""
    _, total, cross, shift, square, divergence = taught
    scale = 1.0 / (1.0 + own[2])
    cross = cross / total
    error = 0.04 + 0.02 * tl.abs(shift).to(tl.float32)
    far = (square >= error * error * (1.0 + own[3]) * scale * scale) & (divergence >= 2.0 * error * error) & (cross == cross)
    near = exists & (shift == shift) & ~far
    if tl.max(near.to(tl.int32), axis=0) > 0:
        careful = careful_agreement(given, index[:, None], exists[:, None], classes, own, taught, ROWS, COLUMNS)
        square = tl.where(near, careful[0], square)
        divergence = tl.where(near, careful[1], divergence)
        cross = tl.where(near, careful[2], cross)
    tl.store(scores.ds + index, tl.sqrt(square), exists)
    tl.store(scores.res + index, tl.where(divergence < 0.0, 0.0, divergence), exists)
    tl.store(scores.kd + index, log1p(own[2]) - cross, exists)


@jit
def is_prediction(given, index, exists, classes, own, z, target, COLUMNS: tl.constexpr):
    """Whether the class `target`, its logit `z`, is the first of those that share the top: where there are several, they are looked for."""
    on_top = exists & (z == own[0]) & (own[1] >= 1.0)
    if tl.max((on_top & (own[1] > 1.0)).to(tl.int32), axis=0) > 0:
        for start in range(0, classes, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            logits = load_tile(given[0], given[1], index[:, None], exists[:, None], column, classes)
            earlier = (logits == own[0][:, None]) & (column < target[:, None])
            on_top = on_top & (tl.max(earlier.to(tl.int32), axis=1) == 0)
    return on_top


@jit
def finish_target(given, scores, index, exists, classes, own, COLUMNS: tl.constexpr):
    """loss, evs and correct. Where the target is not on top, one of the others is, with e = 1."""
    top, _, rest, rest_sq, _, _ = own
    target = tl.load(given[6] + index, exists, other=0)
    is_class = exists & (target >= 0) & (target < classes)
    z = tl.load(given[0] + index * given[1] + target, is_class, other=0.0).to(tl.float32)
    d = z - top
    e = exp(d)
    nothing = tl.where(is_class, 0.0, float("nan"))
    others, others_sq = rest + (1.0 - e), rest_sq + (1.0 - e * e)
    tl.store(scores.loss + index, log1p(rest) - d + nothing, exists)
    tl.store(scores.evs + index, tl.sqrt(others * others + others_sq) / (1.0 + rest) + nothing, exists)
    tl.store(scores.correct + index, is_prediction(given, index, is_class, classes, own, z, target, COLUMNS), exists)


@jit
def soft_sums(given, row, exists, classes, top, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """In fp64: Σ e of all classes, Σ y, Σ y (z − top); and the first class with the largest y. Sums are NaN where a y is none."""
    total, weight, weighted = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    best, first = tl.full([ROWS], -1.0, tl.float32), tl.zeros([ROWS], tl.int32)
    for start in range(0, classes, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        d = load_tile(given[0], given[1], row, exists, column, classes).to(tl.float64) - top[:, None]
        y = tl.load(given[4] + row * given[5] + column, exists & (column < classes), other=0.0).to(tl.float32)
        total += tl.sum(tl.exp(d), axis=1)
        weight += tl.sum(tl.where((y >= 0.0) & (y < float("inf")), y, float("nan")).to(tl.float64), axis=1)
        weighted += tl.sum(tl.where(y > 0.0, y * d, 0.0), axis=1)
        largest = tl.max(y, axis=1)
        here = tl.min(tl.where(y == largest[:, None], column, 2147483647), axis=1)
        first = tl.where(largest > best, here, first)
        best = tl.maximum(largest, best)
    return total, weight, weighted, first


@jit
def finish_soft(given, scores, index, exists, classes, own, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """loss, evs and correct against probabilities: in fp64, since p − y cancels where the model has learned y."""
    row, there, top, rest = index[:, None], exists[:, None], own[0], own[2]
    total, weight, weighted, first = soft_sums(given, row, there, classes, top.to(tl.float64), ROWS, COLUMNS)
    square = tl.zeros([ROWS], tl.float64)
    for start in range(0, classes, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        d = load_tile(given[0], given[1], row, there, column, classes).to(tl.float64) - top[:, None].to(tl.float64)
        y = tl.load(given[4] + row * given[5] + column, there & (column < classes), other=0.0)
        difference = tl.exp(d) / total[:, None] - y.to(tl.float64)
        square += tl.sum(difference * difference, axis=1)
    loss = log1p(rest).to(tl.float64) * weight - weighted
    tl.store(scores.loss + index, loss.to(tl.float32), exists)
    tl.store(scores.evs + index, tl.sqrt(square + 0.0 * weight).to(tl.float32) + 0.0 * rest, exists)
    z = tl.load(given[0] + index * given[1] + first, exists, other=0.0).to(tl.float32)
    correct = is_prediction(given, index, exists, classes, own, z, first, COLUMNS)
    tl.store(scores.correct + index, correct & (loss == loss), exists)


@jit
def finish(given, scores, index, exists, classes, own, taught, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Every score that is wanted, from the sums of a row; the rows are read again only where that is said above."""
    top, _, rest, _, weighted, second = own
    tl.store(scores.entropy + index, log1p(rest) - weighted / (1.0 + rest), exists)
    tl.store(scores.confidence + index, 1.0 / (1.0 + rest), exists)
    tl.store(scores.margin + index, -expm1(second - top) / (1.0 + rest), exists)
    if given[6] is not None:
        finish_target(given, scores, index, exists, classes, own, COLUMNS)
    if given[4] is not None:
        finish_soft(given, scores, index, exists, classes, own, ROWS, COLUMNS)
    if taught is not None:
        finish_teacher(given, scores, index, exists, classes, own, taught, ROWS, COLUMNS)
