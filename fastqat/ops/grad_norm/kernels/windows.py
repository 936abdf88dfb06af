"""What the kernels of gradient norms share: positions, taps and their addresses, masked loads, and products of tiles.

A position t, counted through the output, has coordinates (d, h, w) there and a `corner` in the input: coordinate · stride − padding. A
column k of the gradient is tap · C/groups + channel, and a tap lies at coordinate · dilation from the corner. So the unfolded input
u[t, k] is x at corner + tap: both parts of its address are vectors, and it is never stored. Coordinates come as tuples (d, h, w).
"""

from __future__ import annotations

from ...._triton import jit, tl


@jit
def index(start, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """``start, ..., start + SIZE - 1``, in 64 bits where offsets need them."""
    found = start + tl.arange(0, SIZE)
    return found.to(tl.int64) if WIDE else found


@jit
def split(flat, sizes, DIMS: tl.constexpr):
    """Coordinates of the index `flat` through the last DIMS of `sizes`; 0 in the others, which have one element."""
    zero = flat * 0
    if DIMS == 1:
        d, h, w = zero, zero, flat
    elif DIMS == 2:
        d, h, w = zero, flat // sizes[2], flat % sizes[2]
    else:
        d, h, w = flat // (sizes[1] * sizes[2]), flat // sizes[2] % sizes[1], flat % sizes[2]
    return d, h, w


@jit
def corners(place, conv):
    """Where in the input the window of each output position begins."""
    d = place[0] * conv.stride[0] - conv.padding[0]
    h = place[1] * conv.stride[1] - conv.padding[1]
    w = place[2] * conv.stride[2] - conv.padding[2]
    return d, h, w


@jit
def taps(tap, conv, DIMS: tl.constexpr):
    """How far each tap is from the corner. The remainder tells the compiler of a single tap, whose offset is 0, for wide accesses."""
    d, h, w = split(tap % (conv.kernel[0] * conv.kernel[1] * conv.kernel[2]), conv.kernel, DIMS)
    return d * conv.dilation[0], h * conv.dilation[1], w * conv.dilation[2]


@jit
def offset(place, strides):
    """Elements from coordinate 0 to `place`."""
    return place[0] * strides[2] + place[1] * strides[3] + place[2] * strides[4]


@jit
def along(place, AXIS: tl.constexpr, RANK: tl.constexpr):
    """Three vectors as tensors of RANK dimensions that lie along AXIS."""
    d, h, w = place
    for axis in tl.static_range(RANK):
        if axis != AXIS:
            d, h, w = tl.expand_dims(d, axis), tl.expand_dims(h, axis), tl.expand_dims(w, axis)
    return d, h, w


@jit
def inside(corner, tap, size, exists, CHECKED: tl.constexpr):
    """`exists`, and corner + tap does not lie in the padding along the last CHECKED dimensions."""
    mask = exists
    if CHECKED >= 1:
        w = corner[2] + tap[2]
        mask = mask & (w >= 0) & (w < size[2])
    if CHECKED >= 2:
        h = corner[1] + tap[1]
        mask = mask & (h >= 0) & (h < size[1])
    if CHECKED >= 3:
        d = corner[0] + tap[0]
        mask = mask & (d >= 0) & (d < size[0])
    return mask


@jit
def positions(conv):
    """Output positions of a sample."""
    return conv.out[0] * conv.out[1] * conv.out[2]


@jit
def columns(conv):
    """Columns of the gradient: taps times channels of a group."""
    return conv.kernel[0] * conv.kernel[1] * conv.kernel[2] * conv.channels


@jit
def grad_offset(t, place, conv, FLAT: tl.constexpr):
    """Elements of grad_y from position 0 to t."""
    return t * conv.grad_y[4] if FLAT else offset(place, conv.grad_y)


@jit
def add_product(a, b, total):
    """`total` + a · b, accumulated in fp32.

    fp32 factors are multiplied as such. TF32 would leave three digits of the norm; three TF32 products per product leave enough, but
    tensor cores do not round their sums to nearest, and over thousands of positions that drifts towards the 1e-5 that is promised.
    """
    if a.dtype != b.dtype:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@jit
def bias_part(grad_y_ptr, o, exists, column_tile, conv, DIMS: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Σ_o (Σ_t g)² of one sample, to which the pointer points, for the outputs `o`; 0 but for the first of the column tiles."""
    sums = tl.zeros([o.shape[0], BLOCK], tl.float32)
    for start in range(0, tl.where(column_tile == 0, positions(conv), 0), BLOCK):
        t = index(start, BLOCK, WIDE)
        offsets = (o * conv.grad_y[1])[:, None] + grad_offset(t, split(t, conv.out, DIMS), conv, FLAT)[None, :]
        sums += tl.load(grad_y_ptr + offsets, exists[:, None] & (t < positions(conv))[None, :], other=0.0).to(tl.float32)
    total = tl.sum(sums, axis=1)
    return tl.sum(total * total)
