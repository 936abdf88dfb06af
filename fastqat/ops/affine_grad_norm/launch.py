"""The Triton backend of the gradient norms of affine layers: allocates, cuts, launches. Triton itself is imported with the first launch."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ... import _backend
from .._launch import on_device
from .._tiles import ceil_div, power
from .reference import Statistics

ELEMENTS = 4096  # of a tile that a program of four warps reads at a time: several 128-bit accesses of x and of grad_y per thread
LINE = 32  # neighbouring channels that a tile takes at least, where there are as many: 128 bytes of fp32
MOST_CHANNELS = 4096  # that a tile holds whole
PROGRAMS = 512  # a few for each multiprocessor of the largest GPUs
STEPS = 64  # tiles that a program adds up in fp32 at most


@functools.cache
def _kernels() -> ModuleType:
    from . import kernels

    return kernels


def _options(**constants: Any) -> dict[str, Any]:
    from ..._triton import NO_FUSION  # here, since importing triton takes as long as all of fastqat

    return {**constants, **NO_FUSION}


def tile(x: Tensor, channels: int) -> dict[str, int]:
    """The tile of `channels` channels of x ``[N, C, T]``: wide along the dimension whose elements are neighbours."""
    positions = x.shape[2]
    if x.stride(2) == 1 or channels == 1:
        columns = min(power(positions), ELEMENTS // 4)
        return {"CHANNELS": min(power(channels), ELEMENTS // columns), "POSITIONS": columns}
    rows = min(power(channels), max(LINE, ELEMENTS // power(positions)))
    return {"CHANNELS": rows, "POSITIONS": min(power(positions), ELEMENTS // rows)}


class Triton:
    """x and grad_y at any strides, without a copy."""

    refuses = staticmethod(_backend.refuses_in_triton)

    @staticmethod
    def sq_norm(x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool, bias: bool) -> Tensor:
        kind, per_position = statistics.kind, statistics.kind in ("position", "rms")
        with on_device(x.device):
            if kind == "group" or (per_position and x.shape[2] == 1):  # one position: all channels are one group
                sums = _by_group(x, grad_y, statistics, weight, bias)
            elif not per_position:
                given = _given(statistics)
                sums = _by_channel(x, grad_y, *given, weight, bias, NEGATIVE=kind == "negative", BY_POSITION=False)
            elif x.shape[1] <= MOST_CHANNELS:
                return _by_position(x, grad_y, statistics, weight, bias)
            else:
                given = _position_statistics(x, statistics)
                sums = _by_channel(x, grad_y, *given, weight, bias, NEGATIVE=False, BY_POSITION=True)
        return sums.sum(1).to(torch.float32)


def _given(statistics: Statistics) -> tuple[Tensor | None, Tensor | None]:
    """Mean and 1 / √(var + eps), ``[C]`` each."""
    _, mean, var, _, eps = statistics
    scale = None if var is None else (var.to(torch.float32) + eps).rsqrt()
    return None if mean is None else mean.to(torch.float32).contiguous(), scale


def _by_channel(
    x: Tensor, grad_y: Tensor, mean: Tensor | None, scale: Tensor | None, weight: bool, bias: bool, **constants: bool
) -> Tensor:
    """The sums of blocks of channels, ``[N, blocks]``."""
    samples, channels, positions = x.shape
    cut = tile(x, channels)
    sums = x.new_empty(samples, ceil_div(channels, cut["CHANNELS"]), dtype=torch.float64)
    _kernels().affine_channels_kernel[(sums.numel(),)](
        x,
        grad_y,
        mean,
        scale,
        sums,
        *x.stride(),
        *grad_y.stride(),
        channels,
        positions,
        **_options(WEIGHT=weight, BIAS=bias, **constants, **cut),
    )
    return sums


def _by_group(x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool, bias: bool) -> Tensor:
    """The sums of groups, ``[N, groups]``."""
    groups, channels = statistics.groups, x.shape[1] // statistics.groups
    sums = x.new_empty(x.shape[0], groups, dtype=torch.float64)
    _kernels().affine_group_kernel[(sums.numel(),)](
        x,
        grad_y,
        sums,
        *x.stride(),
        *grad_y.stride(),
        groups,
        channels,
        x.shape[2],
        statistics.eps,
        **_options(CENTRED=statistics.kind != "rms", WEIGHT=weight, BIAS=bias, **tile(x, channels)),
    )
    return sums


def _by_position(x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool, bias: bool) -> Tensor:
    """``[N]``, from the gradients of chunks of the positions."""
    samples, channels, positions = x.shape
    rows = power(channels)
    columns = min(power(positions), max(ELEMENTS // rows, 1))
    tiles = ceil_div(positions, columns)
    steps = min(ceil_div(tiles, min(tiles, ceil_div(PROGRAMS, samples))), STEPS)
    chunks = ceil_div(tiles, steps)
    product, grad = x.new_empty(2, samples, chunks, channels, dtype=torch.float32)
    _kernels().affine_positions_kernel[(samples * chunks,)](
        x,
        grad_y,
        product,
        grad,
        *x.stride(),
        *grad_y.stride(),
        channels,
        positions,
        steps,
        chunks,
        statistics.eps,
        **_options(CENTRED=statistics.kind == "position", CHANNELS=rows, POSITIONS=columns),
    )
    wanted = [each for each, is_wanted in ((product, weight), (grad, bias)) if is_wanted]
    return torch.stack([each.sum(1, dtype=torch.float64).square().sum(1) for each in wanted]).sum(0).to(torch.float32)


def _position_statistics(x: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Mean and 1 / √(variance + eps) of each position, ``[N, T]``."""
    samples, channels, positions = x.shape
    mean = x.new_zeros(samples, positions, dtype=torch.float64)
    scale = x.new_empty(samples, positions, dtype=torch.float32)
    _kernels().affine_statistics_kernel[(samples * positions,)](
        x,
        mean,
        scale,
        *x.stride(),
        channels,
        positions,
        statistics.eps,
        **_options(CENTRED=statistics.kind == "position", CHANNELS=MOST_CHANNELS),
    )
    return mean, scale
