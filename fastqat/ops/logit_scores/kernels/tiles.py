"""The maths of the logit scores on tiles of logits, as pure Triton functions; `agreement` alone reads.

With top the largest logit of a row, e_j = exp(z_j − top). The classes on top never enter the sum `below` = Σ of the other e_j, so that a
loss of 1e-9 keeps its digits: how many they are is the whole number Σ e_j − below. fp32 inside; beyond the end of a row stand the lowest
numbers, whose e is 0.
"""

from __future__ import annotations

from ...._triton import jit, tl


@jit
def load_tile(ptr, stride, row, exists, column, classes):
    """Elements of the rows `row` at `column` as fp32, the lowest number beyond their end."""
    there = exists & (column < classes)
    place = ptr + row * stride + column
    if ptr.dtype.element_ty == tl.float16:  # which has no number as low
        return tl.where(there, tl.load(place, there, other=0.0).to(tl.float32), -3.38e38)
    return tl.load(place, there, other=-3.38e38).to(tl.float32)


@jit
def exp(x):
    """exp(x) for x ≤ 0, 0 where fp32 would become denormal: one instruction more than 2^x. The error grows with |x|, to 2e-6 of a value of
    1e-12; what is smaller cannot show."""
    return tl.exp2(x * 1.4426950408889634)


@jit
def log1p(x):
    """log(1 + x): the error of 1 + x cancels in the quotient."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / (y - 1.0)))


@jit
def expm1(x):
    """exp(x) − 1 for x ≤ 0: near 0 the error of exp cancels in the quotient."""
    y = exp(x)
    return tl.where(y == 1.0, x, tl.where(y < 0.5, y - 1.0, (y - 1.0) * (x / tl.log(y))))


@jit
def student_sums(z, top, AXIS: tl.constexpr):
    """Σ e; over the classes below the top: Σ e, Σ e² and the largest logit; Σ e (z − top)."""
    d = z - top
    every = exp(d)
    on_top = z == top
    e = tl.where(on_top, 0.0, every)
    second = tl.max(tl.where(on_top, -3.4e38, z), axis=AXIS)
    weighted = every * tl.maximum(d, -1e30)  # 0 for e = 0, at d = −inf too
    return tl.sum(every, axis=AXIS), tl.sum(e, axis=AXIS), tl.sum(e * e, axis=AXIS), tl.sum(weighted, axis=AXIS), second


@jit
def own_sums(top, every, below, below_sq, weighted, second):
    """The top, how many classes share it, Σ e and Σ e² over all classes but one of these, Σ e (z − top), and the second largest logit."""
    ties = tl.floor(every - below + 0.5)
    return top, ties, below + (ties - 1.0), below_sq + (ties - 1.0), weighted, tl.where(ties > 1.0, top, second)


@jit
def teacher_sums(z, zt, top, teacher_top, AXIS: tl.constexpr):
    """With the teacher's e: Σ e, and Σ e (z − top) of the student's z; this is NaN where z is −inf and e is 0."""
    e = exp(zt - teacher_top)
    return tl.sum(e, axis=AXIS), tl.sum(e * (z - top), axis=AXIS)


@jit
def none_unless_finite(top):
    """0, or NaN where the largest logit is none: a row with NaN or +inf, or of nothing but −inf."""
    return tl.where((top > -3.3e38) & (top < float("inf")), 0.0, float("nan"))


@jit
def shift_between(top, teacher_top, rest, total):
    """z − zt where p = t, in fp64: the difference of the tops and of the logarithms of both normalisers, 1 + rest and `total`."""
    return (top.to(tl.float64) - teacher_top.to(tl.float64)) + log1p((1.0 + rest - total) / total).to(tl.float64)


@jit
def log_ratio(z, zt, shift, EXACT: tl.constexpr):
    """u = log(p / t) = z − zt − shift with the fp64 `shift`; `EXACT`: without the rounding of z − zt and of the shift."""
    gap = z - zt
    high = shift.to(tl.float32)
    if not EXACT:
        return gap - high
    back = gap - z
    rounding = (z - (gap - back)) - (zt + back)
    low = (shift - high.to(tl.float64)).to(tl.float32)
    return (gap - high) + (tl.where(rounding == rounding, rounding, 0.0) - low)


@jit
def compare(u, p, t, EXACT: tl.constexpr):
    """p − t and p u − p + t ≥ 0. Without cancellation: with tanh(u / 2) = u (1/2 + q), q = u² Q(u²),

    p − t = (p + t) u (1/2 + q) and p u − p + t = (p + t) u (u (1/2 + q) / 2 − q). Far from agreement (|u| > 1) the plain forms are
    accurate; where u is infinite and p is 0 only with `EXACT`. Q: minimax fit, error 1.4e-8 of tanh.
    """
    v = u * u
    q = v * (-0.04166643565 + v * (0.0041643712375 + v * (-0.00041447534125 + v * 3.3704089140625e-05)))
    slope = 0.5 + q
    scaled = (p + t) * u
    near = v <= 1.0
    difference = tl.where(near, scaled * slope, p - t)
    pu = p * u
    if EXACT:
        pu = tl.where(p > 0.0, pu, 0.0)
    return difference, tl.where(near, scaled * (0.5 * (u * slope) - q), pu - difference)
