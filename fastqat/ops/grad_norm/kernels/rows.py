"""Samples with a single position: G = g uᵀ, so that its norm is ‖g‖² ‖u‖², and with a mask Σ_o g_o² Σ_k (mask ∘ mask)_ok u_k²."""

from __future__ import annotations

from ...._triton import jit, tl
from .windows import add_product, columns, corners, index, inside, offset, split, taps


@jit
def window(k, conv, DIMS: tl.constexpr, CHECKED: tl.constexpr):
    """Where the columns `k` of the only window are, and which of them exist and do not lie in the padding."""
    tap, corner = taps(k // conv.channels, conv, DIMS), corners(split(k * 0, conv.out, DIMS), conv)
    mask = inside(corner, tap, conv.size, k < columns(conv), CHECKED)
    return (k % conv.channels) * conv.x[1] + offset(corner, conv.x) + offset(tap, conv.x), mask


@jit
def grad_norm_row_kernel(
    x_ptr,  # [N, C, D, H, W], any strides
    grad_y_ptr,  # [N, O, 1, 1, 1], any strides
    part_ptr,  # [N, groups] fp32
    conv,  # `Conv`
    BIAS: tl.constexpr,
    DIMS: tl.constexpr,
    CHECKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """‖g‖² (‖u‖² + 1 for the bias) of one group of one sample with a single position."""
    program = tl.program_id(0)
    group, sample = (program % conv.groups).to(tl.int64), (program // conv.groups).to(tl.int64)
    grad_here = grad_y_ptr + sample * conv.grad_y[0] + group * conv.outputs * conv.grad_y[1]
    x_here = x_ptr + sample * conv.x[0] + group * conv.channels * conv.x[1]
    grad_sum, window_sum = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, conv.outputs, BLOCK):
        o = index(start, BLOCK, WIDE)
        value = tl.load(grad_here + o * conv.grad_y[1], o < conv.outputs, other=0.0).to(tl.float32)
        grad_sum += value * value
    for start in range(0, columns(conv), BLOCK):
        k = index(start, BLOCK, WIDE)
        offsets, mask = window(k, conv, DIMS, CHECKED)
        value = tl.load(x_here + offsets, mask, other=0.0).to(tl.float32)
        window_sum += value * value
    total = tl.sum(window_sum)
    if BIAS:
        total += 1.0
    tl.store(part_ptr + program, tl.sum(grad_sum) * total)


@jit(do_not_specialize=["samples"])
def grad_norm_masked_row_kernel(
    x_ptr,  # [N, C, D, H, W], any strides
    grad_y_ptr,  # [N, O, 1, 1, 1], any strides
    mask_ptr,  # [O, columns] fp32, or None
    slope_ptr,  # the same
    part_ptr,  # [N, groups, output tiles] fp32
    inner_ptr,  # [N, O] fp32; None without a slope
    conv,  # `Conv`
    samples,
    BIAS: tl.constexpr,
    DIMS: tl.constexpr,
    CHECKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Σ_o g² Σ_k mask² u² and g_o Σ_k slope u as products of matrices over samples; a program owns BLOCK_N samples and BLOCK_O outputs."""
    tiles = tl.cdiv(conv.outputs, BLOCK_O)
    parts = tiles * conv.groups
    part = tl.program_id(0) % parts
    n = (tl.program_id(0) // parts).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o, group = index(part % tiles * BLOCK_O, BLOCK_O, WIDE), (part // tiles).to(tl.int64)
    x_rows = n * conv.x[0] + group * conv.channels * conv.x[1]
    squares, products = tl.zeros([BLOCK_N, BLOCK_O], tl.float32), tl.zeros([BLOCK_N, BLOCK_O], tl.float32)
    for start in range(0, columns(conv), BLOCK_K):
        k = index(start, BLOCK_K, WIDE)
        offsets, there = window(k, conv, DIMS, CHECKED)
        u = tl.load(x_ptr + x_rows[:, None] + offsets[None, :], (n < samples)[:, None] & there[None, :], other=0.0).to(tl.float32)
        weights = ((group * conv.outputs + o) * columns(conv))[None, :] + k[:, None]
        exists = (o < conv.outputs)[None, :] & (k < columns(conv))[:, None]
        if mask_ptr is not None:
            mask = tl.load(mask_ptr + weights, exists, other=0.0)
            squares = add_product(u * u, mask * mask, squares)
        else:
            squares += tl.sum(u * u, axis=1)[:, None]
        if slope_ptr is not None:
            products = add_product(u, tl.load(slope_ptr + weights, exists, other=0.0), products)
    both = (n < samples)[:, None] & (o < conv.outputs)[None, :]
    place = group * conv.outputs + o
    grads = tl.load(grad_y_ptr + (n * conv.grad_y[0])[:, None] + (place * conv.grad_y[1])[None, :], both, other=0.0).to(tl.float32)
    if slope_ptr is not None:
        tl.store(inner_ptr + (n * (conv.groups * conv.outputs))[:, None] + place[None, :], grads * products, both)
    if BIAS:
        squares += 1.0
    tl.store(part_ptr + n * parts + part, tl.sum(grads * grads * squares, axis=1), n < samples)
