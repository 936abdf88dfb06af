"""Gram form: Σ_tt' (g_t · g_t') (u_t · u_t'), a pair of position tiles at a time."""

from __future__ import annotations

from ...._triton import jit, tl
from .windows import add_product, corners, grad_offset, index, inside, offset, positions, split, taps


@jit
def tile_pair(pair, tiles):
    """Tiles (i, j), i ≤ j, of the number `pair`: the triangle of pairs folded into a rectangle, its last rows filling up the first."""
    even = 1 - tiles % 2
    row, column = pair // (tiles + even), pair % (tiles + even) - even
    folded = column < row
    return tl.where(folded, tiles - even - row, row), tl.where(folded, tiles - 1 - even - column, column)


@jit
def grad_products(
    grad_y_ptr, left, right, conv, DIMS: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr
):
    """g_t · g_t' for t in `left`, t' in `right`; one group of one sample, to which the pointer points."""
    rows = grad_offset(left, split(left, conv.out, DIMS), conv, FLAT)[:, None]
    others = grad_offset(right, split(right, conv.out, DIMS), conv, FLAT)[None, :]
    products = tl.zeros([BLOCK_P, BLOCK_P], tl.float32)
    for start in range(0, conv.outputs, BLOCK_D):
        o = index(start, BLOCK_D, WIDE)
        step, exists = o * conv.grad_y[1], o < conv.outputs
        a = tl.load(grad_y_ptr + rows + step[None, :], (left < positions(conv))[:, None] & exists[None, :], other=0.0)
        b = tl.load(grad_y_ptr + others + step[:, None], (right < positions(conv))[None, :] & exists[:, None], other=0.0)
        products = add_product(a, b, products)
    return products


@jit
def window_products(
    x_ptr,
    left,
    right,
    conv,
    DIMS: tl.constexpr,
    CHECKED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """u_t · u_t' for t in `left`, t' in `right`; one group of one sample, to which the pointer points. A step is channels of one tap."""
    corner, other = corners(split(left, conv.out, DIMS), conv), corners(split(right, conv.out, DIMS), conv)
    rows, others = offset(corner, conv.x), offset(other, conv.x)
    channel_tiles = tl.cdiv(conv.channels, BLOCK_D)
    products = tl.zeros([BLOCK_P, BLOCK_P], tl.float32)
    for step in range(0, conv.kernel[0] * conv.kernel[1] * conv.kernel[2] * channel_tiles):
        tap = taps(step // channel_tiles, conv, DIMS)
        channel = index(step % channel_tiles * BLOCK_D, BLOCK_D, WIDE)
        depth, exists = channel * conv.x[1] + offset(tap, conv.x), channel < conv.channels
        mask = inside(corner, tap, conv.size, left < positions(conv), CHECKED)
        a = tl.load(x_ptr + rows[:, None] + depth[None, :], mask[:, None] & exists[None, :], other=0.0)
        mask = inside(other, tap, conv.size, right < positions(conv), CHECKED)
        b = tl.load(x_ptr + others[None, :] + depth[:, None], mask[None, :] & exists[:, None], other=0.0)
        products = add_product(a, b, products)
    return products


@jit
def grad_norm_gram_kernel(
    x_ptr,  # [N, C, D, H, W], any strides
    grad_y_ptr,  # [N, O, D', H', W'], any strides
    part_ptr,  # [N, groups, pairs of tiles] fp32
    conv,  # `Conv`
    BIAS: tl.constexpr,
    CLAMP: tl.constexpr,  # the part is the result
    DIMS: tl.constexpr,
    CHECKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Σ (g_t · g_t') (u_t · u_t' + 1 for the bias) over a pair of position tiles, twice off the diagonal; both tiles stay in registers."""
    tiles = tl.cdiv(positions(conv), BLOCK_P)
    pairs = tiles * (tiles + 1) // 2
    program = tl.program_id(0)
    i, j = tile_pair(program % pairs, tiles)
    group, sample = (program // pairs % conv.groups).to(tl.int64), (program // pairs // conv.groups).to(tl.int64)
    left, right = index(i * BLOCK_P, BLOCK_P, WIDE), index(j * BLOCK_P, BLOCK_P, WIDE)
    grad_here = grad_y_ptr + sample * conv.grad_y[0] + group * conv.outputs * conv.grad_y[1]
    x_here = x_ptr + sample * conv.x[0] + group * conv.channels * conv.x[1]
    grads = grad_products(grad_here, left, right, conv, DIMS, FLAT, WIDE, BLOCK_P, BLOCK_D)
    windows = window_products(x_here, left, right, conv, DIMS, CHECKED, WIDE, BLOCK_P, BLOCK_D)
    if BIAS:
        windows += 1.0
    total = tl.sum(tl.sum(grads * windows, axis=1)) * tl.where(i == j, 1.0, 2.0)
    if CLAMP:
        total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(part_ptr + program, total)
