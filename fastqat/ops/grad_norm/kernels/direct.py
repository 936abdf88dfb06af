"""Direct form: a tile of each sample's gradient in registers, squared and summed there. Dense groups by matrix products, others without."""

from __future__ import annotations

from ...._triton import jit, tl
from .windows import add_product, along, bias_part, columns, corners, grad_offset, index, inside, offset, positions, split, taps


@jit
def finish_tile(gradient, o, k, mask_ptr, slope_ptr, inner_ptr, sample, column_tile, column_tiles, first_output, outputs, conv):
    """Σ (mask ∘ G)² of a tile G of outputs `o` (from `first_output`, `outputs` in all) and columns `k`; stores its Σ_k slope ∘ G."""
    width = columns(conv)
    exists = (o < outputs)[:, None] & (k < width)[None, :]
    offsets = ((first_output + o) * width)[:, None] + k[None, :]
    if slope_ptr is not None:
        inner = tl.sum(gradient * tl.load(slope_ptr + offsets, exists, other=0.0), axis=1)
        row = (sample * column_tiles + column_tile) * (conv.groups * conv.outputs) + first_output
        tl.store(inner_ptr + row + o, inner, o < outputs)
    if mask_ptr is not None:
        gradient = gradient * tl.load(mask_ptr + offsets, exists, other=0.0)
    return tl.sum(tl.sum(gradient * gradient, axis=1))


@jit
def gradient_tile(
    x_ptr,
    grad_y_ptr,
    o,
    k,
    conv,
    DIMS: tl.constexpr,
    CHECKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """G[o, k] = Σ_t g[o, t] u[t, k] of one sample and group, to which the pointers point."""
    tap = taps(k // conv.channels, conv, DIMS)
    column = (k % conv.channels) * conv.x[1] + offset(tap, conv.x)
    row = o * conv.grad_y[1]
    gradient = tl.zeros([o.shape[0], k.shape[0]], tl.float32)
    for start in range(0, positions(conv), BLOCK_T):
        t = index(start, BLOCK_T, WIDE)
        place, there = split(t, conv.out, DIMS), t < positions(conv)
        corner = corners(place, conv)
        grads = tl.load(
            grad_y_ptr + row[:, None] + grad_offset(t, place, conv, FLAT)[None, :],
            (o < conv.outputs)[:, None] & there[None, :],
            other=0.0,
        )
        exists = there[:, None] & (k < columns(conv))[None, :]
        mask = inside(along(corner, 0, 2), along(tap, 1, 2), conv.size, exists, CHECKED)
        windows = tl.load(x_ptr + offset(corner, conv.x)[:, None] + column[None, :], mask, other=0.0)
        gradient = add_product(grads, windows, gradient)
    return gradient


@jit(do_not_specialize=["samples", "repeat"])
def grad_norm_direct_kernel(
    x_ptr,  # [N, C, D, H, W], any strides
    grad_y_ptr,  # [N, O, D', H', W'], any strides
    mask_ptr,  # [O, columns] fp32, or None
    slope_ptr,  # the same
    part_ptr,  # [N, tiles] fp32
    inner_ptr,  # [N, column tiles, O] fp32; None without a slope
    conv,  # `Conv`
    samples,
    repeat,
    BIAS: tl.constexpr,
    DIMS: tl.constexpr,
    CHECKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Σ (mask ∘ G)² over one tile of G; a program owns that tile of `repeat` samples, so that mask and slope stay in the L1 cache."""
    column_tiles, row_tiles = tl.cdiv(columns(conv), BLOCK_K), tl.cdiv(conv.outputs, BLOCK_O)
    tiles = column_tiles * row_tiles * conv.groups
    tile, first = tl.program_id(0) % tiles, (tl.program_id(0) // tiles * repeat).to(tl.int64)
    column_tile, group = tile % column_tiles, tile // column_tiles // row_tiles
    o = index(tile // column_tiles % row_tiles * BLOCK_O, BLOCK_O, WIDE)
    k = index(column_tile * BLOCK_K, BLOCK_K, WIDE)
    for number in range(0, tl.minimum(repeat, samples - first)):
        sample = first + number
        x_here = x_ptr + sample * conv.x[0] + group.to(tl.int64) * conv.channels * conv.x[1]
        grad_here = grad_y_ptr + sample * conv.grad_y[0] + group.to(tl.int64) * conv.outputs * conv.grad_y[1]
        gradient = gradient_tile(x_here, grad_here, o, k, conv, DIMS, CHECKED, FLAT, WIDE, BLOCK_T)
        total = finish_tile(
            gradient, o, k, mask_ptr, slope_ptr, inner_ptr, sample, column_tile, column_tiles, group * conv.outputs, conv.outputs, conv
        )
        if BIAS:
            total += bias_part(grad_here, o, o < conv.outputs, column_tile, conv, DIMS, FLAT, WIDE, BLOCK_T)
        tl.store(part_ptr + sample * tiles + tile, total)


@jit
def grouped_tile(
    x_ptr,
    grad_y_ptr,
    o,
    k,
    conv,
    DIMS: tl.constexpr,
    CHECKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """G[o, k] = Σ_t g[o, t] u[o, t, k] of one sample, u in the group of o; BLOCK_T partial sums of each element until the end."""
    tap = taps(k // conv.channels, conv, DIMS)
    channel = (o // conv.outputs * conv.channels)[:, None] + (k % conv.channels)[None, :]
    origin = channel * conv.x[1] + offset(tap, conv.x)[None, :]
    row, exists = o * conv.grad_y[1], o < conv.groups * conv.outputs
    both = exists[:, None] & (k < columns(conv))[None, :]
    sums = tl.zeros([o.shape[0], k.shape[0], BLOCK_T], tl.float32)
    for start in range(0, positions(conv), BLOCK_T):
        t = index(start, BLOCK_T, WIDE)
        place, there = split(t, conv.out, DIMS), t < positions(conv)
        corner = corners(place, conv)
        grads = tl.load(grad_y_ptr + row[:, None] + grad_offset(t, place, conv, FLAT)[None, :], exists[:, None] & there[None, :], other=0.0)
        mask = inside(along(corner, 2, 3), along(tap, 1, 3), conv.size, both[:, :, None] & there[None, None, :], CHECKED)
        windows = tl.load(x_ptr + origin[:, :, None] + offset(corner, conv.x)[None, None, :], mask, other=0.0)
        sums += grads.to(tl.float32)[:, None, :] * windows.to(tl.float32)
    return tl.sum(sums, axis=2)


@jit(do_not_specialize=["samples", "repeat"])
def grad_norm_grouped_kernel(
    x_ptr,  # [N, C, D, H, W], any strides
    grad_y_ptr,  # [N, O, D', H', W'], any strides
    mask_ptr,  # [O, columns] fp32, or None
    slope_ptr,  # the same
    part_ptr,  # [N, tiles] fp32
    inner_ptr,  # [N, column tiles, O] fp32; None without a slope
    conv,  # `Conv`
    samples,
    repeat,
    BIAS: tl.constexpr,
    DIMS: tl.constexpr,
    CHECKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The same for groups of few outputs: a tile holds outputs of many groups, each with the columns of its own, and no product is idle."""
    column_tiles, row_tiles = tl.cdiv(columns(conv), BLOCK_K), tl.cdiv(conv.groups * conv.outputs, BLOCK_O)
    tiles = column_tiles * row_tiles
    tile, first = tl.program_id(0) % tiles, (tl.program_id(0) // tiles * repeat).to(tl.int64)
    column_tile = tile % column_tiles
    o = index(tile // column_tiles * BLOCK_O, BLOCK_O, WIDE)
    k = index(column_tile * BLOCK_K, BLOCK_K, WIDE)
    outputs = conv.groups * conv.outputs
    for number in range(0, tl.minimum(repeat, samples - first)):
        sample = first + number
        x_here, grad_here = x_ptr + sample * conv.x[0], grad_y_ptr + sample * conv.grad_y[0]
        gradient = grouped_tile(x_here, grad_here, o, k, conv, DIMS, CHECKED, FLAT, WIDE, BLOCK_T)
        total = finish_tile(gradient, o, k, mask_ptr, slope_ptr, inner_ptr, sample, column_tile, column_tiles, 0, outputs, conv)
        if BIAS:
            total += bias_part(grad_here, o, o < outputs, column_tile, conv, DIMS, FLAT, WIDE, BLOCK_T)
        tl.store(part_ptr + sample * tiles + tile, total)
