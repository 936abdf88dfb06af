"""The door to Triton, and the arithmetic that its kernels share: one element of fake quantization, as pure functions on values.

Kernel modules take `jit` and `tl` from here. Without triton installed they can still be imported (and read by doctest), never
launched: the backend table refuses first. With ``TRITON_INTERPRET=1`` set before the import, kernels run on CPU tensors.

The functions use what the interpreter and every GPU compute alike: no libdevice, no inline assembly, fp32 throughout. They are right
only without contraction of multiply and add: launch with `NO_FUSION`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = tl = None

# Launch option of every kernel. A fused multiply-add rounds once where the contract rounds twice.
NO_FUSION = {"enable_fp_fusion": False}


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """``triton.jit``, as a decorator with or without options; the function itself where triton is not installed."""
    if triton is not None:
        return triton.jit(function, **options)
    return function if function is not None else lambda function: function


@jit
def round_half_even(v):
    """RNE(v) for |v| < 2²², never −0; NaN stays NaN.

    Adding 1.5·2²³ leaves no bits for a fraction, so the adder itself rounds half to even; subtracting it is exact.
    """
    return (v + 12582912.0) - 12582912.0


@jit
def round_half_even_any(v):
    """RNE(v) for every v: from 2²³ on a float is an integer already."""
    size = tl.abs(v)
    rounded = tl.where(size < 8388608.0, (size + 8388608.0) - 8388608.0, size)
    return tl.where(v < 0.0, -rounded, rounded)


@jit
def clamp(v, low, high):
    """v between low and high; NaN stays NaN."""
    return tl.minimum(tl.maximum(v, low, propagate_nan=tl.PropagateNan.ALL), high, propagate_nan=tl.PropagateNan.ALL)


@jit
def load_range(scale_ptr, zero_point_ptr, index, mask, qmin, qmax):
    """Scale s, fp32(1/s), rounded zero point z, and the bounds qmin − z and qmax − z of the scales `index`; 1 and 0 outside `mask`.

    ``zero_point_ptr`` None: z = 0, and the bounds are qmin and qmax themselves.
    """
    scale = tl.load(scale_ptr + index, mask, other=1.0)
    inv = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    if zero_point_ptr is None:
        zero = tl.zeros(scale.shape, tl.float32)
    else:
        zero = round_half_even_any(tl.load(zero_point_ptr + index, mask, other=0.0))
    return scale, inv, zero, qmin - zero, qmax - zero


@jit
def to_steps(x, scale, inv, RECIPROCAL: tl.constexpr):
    """v = x / s, correctly rounded, or x · fp32(1/s)."""
    return x * inv if RECIPROCAL else tl.div_rn(x, scale)


@jit
def centered_code(x, scale, inv, low, high, RECIPROCAL: tl.constexpr):
    """c − z = clamp(RNE(v), low, high) for integer bounds below 2²² in size: clamping first gives the same and keeps RNE exact."""
    return round_half_even(clamp(to_steps(x, scale, inv, RECIPROCAL), low, high))


@jit
def fake_quant(x, scale, inv, low, high, RECIPROCAL: tl.constexpr):
    """x_hat = (c − z) · s, never −0 for s > 0; NaN stays NaN."""
    return centered_code(x, scale, inv, low, high, RECIPROCAL) * scale


@jit
def quant_code(x, scale, inv, zero, low, high, RECIPROCAL: tl.constexpr):
    """The code c as int32; NaN gives qmin, as ONNX Runtime does."""
    c = centered_code(x, scale, inv, low, high, RECIPROCAL)
    return (tl.where(c == c, c, low) + zero).to(tl.int32)


@jit
def fake_quant_grad(x, grad_y, scale, inv, low, high, RECIPROCAL: tl.constexpr):
    """grad_x, and this element's terms of the gradients of scale and zero point, before the gradient factor.

    "div" tests the range on v, "reciprocal" on RNE(v). The clamped value tells all: it equals the tested one inside the range, is the
    bound outside, and is NaN where x is NaN (then grad_x is 0 and both terms are NaN).
    """
    v = to_steps(x, scale, inv, RECIPROCAL)
    if RECIPROCAL:
        # One step beyond the bounds is outside like everything farther, and near enough to be rounded exactly.
        tested = round_half_even(clamp(v, low - 1.0, high + 1.0))
        bound = clamp(tested, low, high)
        slope = (tested * scale - x) * inv
    else:
        tested = v
        bound = clamp(v, low, high)
        slope = round_half_even(bound) - v
    inside = bound == tested
    scale_term = grad_y * tl.where(inside, slope, bound)
    zero_term = tl.where(inside, 0.0, (bound - bound) - grad_y * scale)
    return tl.where(inside, grad_y, 0.0), scale_term, zero_term
