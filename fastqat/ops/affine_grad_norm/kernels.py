"""Triton kernels of the gradient norms of affine layers. Launched from ``launch.py``.

x and grad_y are ``[N, C, T]`` at any strides; a tile is some channels by some positions. Of each channel of a sample Σ_t grad_y · x_hat is
the weight's gradient, Σ_t grad_y the bias's; their squares are added up over the channels that a program owns.

A tile is summed in fp32, what comes after it in fp64, in an order that the shape alone fixes. Means are subtracted before anything is
multiplied, so that a mean that is large beside the deviation costs no digits.
"""

from __future__ import annotations

from ..._triton import jit, tl


@jit
def load_tile(ptr, channel, position, channel_stride, position_stride, channels, positions):
    """``[CHANNELS, POSITIONS]`` values as fp32 and which of them exist; 0 where there are none."""
    mask = (channel < channels)[:, None] & (position < positions)[None, :]
    offsets = channel.to(tl.int64)[:, None] * channel_stride + position.to(tl.int64)[None, :] * position_stride
    return tl.load(ptr + offsets, mask, other=0.0).to(tl.float32), mask


@jit
def squares(product, grad, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    """Sum over channels of the squares of the weight's and the bias's gradients, those that are wanted."""
    total = tl.zeros(grad.shape, tl.float64)
    if WEIGHT:
        total += product * product
    if BIAS:
        total += grad * grad
    return tl.sum(total, axis=0)


@jit
def affine_channels_kernel(
    x_ptr,  # [N, C, T]
    grad_y_ptr,  # [N, C, T]
    mean_ptr,  # [C] or None for 0; by position [N, T] in fp64
    scale_ptr,  # [C] or None for 1; by position [N, T]
    sum_ptr,  # [N, ceil(C / CHANNELS)]
    x_sample,
    x_channel,
    x_position,
    grad_sample,
    grad_channel,
    grad_position,
    channels,
    positions,
    NEGATIVE: tl.constexpr,
    BY_POSITION: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """x_hat = (x − mean) · scale, or min(x, 0); one program owns CHANNELS channels of a sample."""
    blocks = tl.cdiv(channels, CHANNELS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    product = tl.zeros([CHANNELS], tl.float64)
    grad = tl.zeros([CHANNELS], tl.float64)
    mean = tl.zeros([CHANNELS], tl.float32)[:, None]
    if mean_ptr is not None and not BY_POSITION:
        mean = tl.load(mean_ptr + channel, channel < channels, other=0.0)[:, None]
    for start in range(0, positions, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        x, _ = load_tile(x_ptr + sample * x_sample, channel, position, x_channel, x_position, channels, positions)
        grad_y, _ = load_tile(grad_y_ptr + sample * grad_sample, channel, position, grad_channel, grad_position, channels, positions)
        if BY_POSITION:
            exists, at = position < positions, sample * positions + position
            x = (x.to(tl.float64) - tl.load(mean_ptr + at, exists, other=0.0)[None, :]).to(tl.float32)
            x *= tl.load(scale_ptr + at, exists, other=0.0)[None, :]
        else:
            x -= mean
        if NEGATIVE:
            x = tl.where(x > 0.0, 0.0, x)
        product += tl.sum(grad_y * x, axis=1).to(tl.float64)
        grad += tl.sum(grad_y, axis=1).to(tl.float64)
    if scale_ptr is not None and not BY_POSITION:
        product *= tl.load(scale_ptr + channel, channel < channels, other=0.0)
    tl.store(sum_ptr + tl.program_id(0), squares(product, grad, WEIGHT, BIAS))


@jit
def group_mean(x_ptr, x_channel, x_position, channels, positions, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr):
    """Mean of ``[channels, positions]`` values, in fp64."""
    total = tl.zeros([CHANNELS], tl.float64)
    for first in range(0, channels, CHANNELS):
        for start in range(0, positions, POSITIONS):
            channel, position = first + tl.arange(0, CHANNELS), start + tl.arange(0, POSITIONS)
            x, _ = load_tile(x_ptr, channel, position, x_channel, x_position, channels, positions)
            total += tl.sum(x, axis=1).to(tl.float64)
    return tl.sum(total, axis=0) / ((tl.zeros([], tl.float64) + channels) * positions)


@jit(do_not_specialize=["groups"])
def affine_group_kernel(
    x_ptr,  # [N, groups · channels, T]
    grad_y_ptr,  # the same
    sum_ptr,  # [N, groups]
    x_sample,
    x_channel,
    x_position,
    grad_sample,
    grad_channel,
    grad_position,
    groups,
    channels,
    positions,
    eps,
    CENTRED: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """One program owns one group of channels of a sample, which it reads again for the products, from the cache.

    With d = x − mean, off by δ since the mean is rounded, p = Σ_t grad_y · d and q = Σ_t grad_y of a channel:
    Σ_c (p − δ q)² = Σ p² − δ (2 Σ p q − δ Σ q²), divided by the variance.
    """
    sample, group = (tl.program_id(0) // groups).to(tl.int64), (tl.program_id(0) % groups).to(tl.int64)
    x_ptr += sample * x_sample + group * channels * x_channel
    grad_y_ptr += sample * grad_sample + group * channels * grad_channel
    mean = group_mean(x_ptr, x_channel, x_position, channels, positions, CHANNELS, POSITIONS).to(tl.float32) if CENTRED else 0.0
    sums = tl.zeros([CHANNELS], tl.float64)
    moments = tl.zeros([CHANNELS], tl.float64)
    square, mixed, bias = tl.zeros([CHANNELS], tl.float64), tl.zeros([CHANNELS], tl.float64), tl.zeros([CHANNELS], tl.float64)
    for first in range(0, channels, CHANNELS):
        product, grad = tl.zeros([CHANNELS], tl.float64), tl.zeros([CHANNELS], tl.float64)
        for start in range(0, positions, POSITIONS):
            channel, position = first + tl.arange(0, CHANNELS), start + tl.arange(0, POSITIONS)
            x, mask = load_tile(x_ptr, channel, position, x_channel, x_position, channels, positions)
            grad_y, _ = load_tile(grad_y_ptr, channel, position, grad_channel, grad_position, channels, positions)
            d = tl.where(mask, x - mean, 0.0)
            product += tl.sum(grad_y * d, axis=1).to(tl.float64)
            grad += tl.sum(grad_y, axis=1).to(tl.float64)
            sums += tl.sum(d, axis=1).to(tl.float64)
            moments += tl.sum(d * d, axis=1).to(tl.float64)
        square, mixed, bias = square + product * product, mixed + product * grad, bias + grad * grad
    count = (tl.zeros([], tl.float64) + channels) * positions
    off = tl.sum(sums, axis=0) / count if CENTRED else 0.0
    variance = tl.maximum(tl.sum(moments, axis=0) / count - off * off, 0.0)
    total = tl.zeros([1], tl.float64)
    if WEIGHT:
        weight = tl.sum(square, axis=0) - off * (2 * tl.sum(mixed, axis=0) - off * tl.sum(bias, axis=0))
        total += tl.maximum(weight, 0.0) / (variance + eps)
    if BIAS:
        total += tl.sum(bias, axis=0)
    tl.store(sum_ptr + tl.program_id(0) + tl.arange(0, 1), total)


@jit
def standardized(x, exists, channels, eps, CENTRED: tl.constexpr):
    """x_hat of ``[CHANNELS, POSITIONS]`` values with the statistics of each position; 0 where nothing `exists`."""
    if CENTRED:
        x = tl.where(exists, x - (tl.sum(x, axis=0) / channels)[None, :], 0.0)
        x = tl.where(exists, x - (tl.sum(x, axis=0) / channels)[None, :], 0.0)  # what rounding the mean has left
    variance = tl.sum(x * x, axis=0) / channels
    return x * (1.0 / tl.sqrt(variance + eps))[None, :]


@jit(do_not_specialize=["steps", "chunks"])
def affine_positions_kernel(
    x_ptr,  # [N, C, T]
    grad_y_ptr,  # [N, C, T]
    product_ptr,  # [N, chunks, C]: Σ grad_y · x_hat
    grad_ptr,  # [N, chunks, C]: Σ grad_y
    x_sample,
    x_channel,
    x_position,
    grad_sample,
    grad_channel,
    grad_position,
    channels,
    positions,
    steps,
    chunks,
    eps,
    CENTRED: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """One program owns all channels of `steps` tiles of positions of a sample, each position with its own statistics."""
    sample, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    channel = tl.arange(0, CHANNELS)
    product = tl.zeros([CHANNELS], tl.float32)
    grad = tl.zeros([CHANNELS], tl.float32)
    for step in range(chunk * steps, (chunk + 1) * steps):
        position = step * POSITIONS + tl.arange(0, POSITIONS)
        x, exists = load_tile(x_ptr + sample * x_sample, channel, position, x_channel, x_position, channels, positions)
        grad_y, _ = load_tile(grad_y_ptr + sample * grad_sample, channel, position, grad_channel, grad_position, channels, positions)
        product += tl.sum(grad_y * standardized(x, exists, channels, eps, CENTRED), axis=1)
        grad += tl.sum(grad_y, axis=1)
    at = tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(product_ptr + at, product, channel < channels)
    tl.store(grad_ptr + at, grad, channel < channels)


@jit
def affine_statistics_kernel(
    x_ptr,  # [N, C, T]
    mean_ptr,  # [N, T] in fp64; not written unless CENTRED
    scale_ptr,  # [N, T]: 1 / √(variance + eps)
    x_sample,
    x_channel,
    x_position,
    channels,
    positions,
    eps,
    CENTRED: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The statistics of one position, where its channels are too many for a tile; one program owns a position of a sample."""
    program = tl.program_id(0).to(tl.int64)
    x_ptr += program // positions * x_sample + program % positions * x_position
    mean = tl.full([], 0.0, tl.float64)
    if CENTRED:
        mean = group_mean(x_ptr, x_channel, 0, channels, 1, CHANNELS, 1)
        tl.store(mean_ptr + program, mean)
    square = tl.zeros([CHANNELS], tl.float64)
    for first in range(0, channels, CHANNELS):
        x, exists = load_tile(x_ptr, first + tl.arange(0, CHANNELS), tl.arange(0, 1), x_channel, 0, channels, 1)
        d = tl.where(exists, x.to(tl.float64) - mean, 0.0)
        square += tl.sum(d * d, axis=1)
    tl.store(scale_ptr + program, (1.0 / tl.sqrt(tl.sum(square, axis=0) / channels + eps)).to(tl.float32))
