"""The Triton backend of the divergence of feature maps: cuts, allocates, launches. Triton itself is imported with the first launch."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _backend
from .._launch import on_device
from .._tiles import ceil_div, narrowed, power, waste
from . import reference
from .layout import Maps, arranged, empty_gradient
from .reference import Found

ELEMENTS = 4096  # of each map in a tile: 32 per thread of four warps, each a vector of 128 bits or a few of them
VECTOR = 4  # elements; where an access takes fewer, twice as many warps share the registers that addresses need
WHOLE = 256  # positions of the longest row that one tile holds where channels are neighbours
LINE = 32  # neighbouring channels of a tile: 128 bytes of fp32
FINISHED = 1024  # parts that a program of the second stage joins at a time
FUSION = {"enable_fp_fusion": True}  # what must be 0 for equal maps has no products


@functools.cache
def _kernels() -> ModuleType:
    from . import kernels  # here, since importing triton takes as long as all of fastqat

    return kernels


class Cut(NamedTuple):
    """How maps ``[N, C, L]`` are cut: channels and positions of a tile, blocks of channels, and parts of a row."""

    rows: int
    columns: int
    blocks: int
    parts: int


def cut(channels: int, positions: int, channels_inner: bool) -> Cut:
    """Tiles that are wide where elements are neighbours; whole rows where they fit."""
    if channels_inner:
        columns = power(positions) if positions <= WHOLE else ELEMENTS // LINE
    else:
        columns = power(positions) if positions <= ELEMENTS else narrowed([ELEMENTS >> i for i in range(3)], lambda n: waste(positions, n))
        columns = max(columns, 16)
    rows = min(power(channels), ELEMENTS // columns)
    return Cut(rows, columns, ceil_div(channels, rows), ceil_div(positions, columns))


def unit(maps: Maps) -> int:
    """Elements, at most 8, of which the strides beside 1 and the length of what is contiguous are multiples."""
    inner = 1 if maps.channels_inner else 2
    lengths = [maps.student.shape[inner], *(s for x in (maps.student, maps.teacher) for s in _strides(x, maps.channels_inner))]
    return next(n for n in (8, 4, 2, 1) if all(length % n == 0 for length in lengths))


def _strides(x: Tensor, channels_inner: bool) -> tuple[int, int]:
    """Of samples, and of positions (`channels_inner`) or channels; 0 where there is only one."""
    outer = 2 if channels_inner else 1
    return x.stride(0) if x.shape[0] > 1 else 0, x.stride(outer) if x.shape[outer] > 1 else 0


def _arguments(maps: Maps, size: Cut, *written: Tensor) -> dict[str, Any]:
    """What all kernels of maps take: strides, lengths and constants; `written` are full-size tensors beside the maps."""
    samples, channels, positions = maps.student.shape
    step = unit(maps)
    outer, inner = (positions, channels) if maps.channels_inner else (channels, positions)
    names = ("strides", "teacher_strides", "grad_strides")
    tensors = (maps.student, maps.teacher, *written)
    strides = {name: tuple(s // step for s in _strides(x, maps.channels_inner)) for name, x in zip(names, tensors, strict=False)}
    return {
        **strides,
        "outer": outer,
        "inner": inner // step,
        "blocks": size.blocks,
        "parts": size.parts,
        "rows": samples * channels,
        "UNIT": step,
        "ROWS": size.rows,
        "COLUMNS": size.columns,
        "CHANNELS_INNER": maps.channels_inner,
        "num_warps": 4 if step >= VECTOR else 8,
        **FUSION,
    }


def _rows(maps: Maps, row: Tensor, saved: Tensor) -> None:
    """KL and statistics of each row: one launch, and one more where rows have several parts."""
    from ..._triton import NO_FUSION

    samples, channels, positions = maps.student.shape
    size = cut(channels, positions, maps.channels_inner)
    rows = samples * channels
    parts = row.new_empty(5, rows, size.parts) if size.parts > 1 else None
    target = (row, saved) if parts is None else (parts[0], parts[1:])
    grid = (samples * size.blocks * size.parts,)
    _kernels().feature_kl_kernel[grid](maps.student, maps.teacher, *target, **_arguments(maps, size))
    if parts is not None:
        width = min(power(size.parts), FINISHED)
        height = FINISHED // width
        finish = _kernels().feature_kl_finish_kernel
        finish[(ceil_div(rows, height),)](*target, row, saved, rows, size.parts, ROWS=height, PARTS=width, **NO_FUSION)


def _gradient(grad_row: Tensor, maps: Maps, row: Tensor, saved: Tensor, grad_x: Tensor) -> None:
    samples, channels, positions = maps.student.shape
    size = cut(channels, positions, maps.channels_inner)
    _kernels().feature_kl_backward_kernel[(samples * size.blocks * size.parts,)](
        grad_row, maps.student, maps.teacher, row, saved, grad_x, **_arguments(maps, size, grad_x)
    )


def _means(maps: Maps) -> Maps:
    """The means over all positions as rows of channels, ``[N, 1, C]`` each, in fp32."""
    samples, channels, positions = maps.student.shape
    size = cut(channels, positions, maps.channels_inner)
    means = maps.student.new_empty(2, samples * channels, size.parts, dtype=torch.float32)
    grid = (samples * size.blocks * size.parts,)
    _kernels().feature_means_kernel[grid](maps.student, maps.teacher, means, 1 / positions, **_arguments(maps, size))
    student, teacher = (means.sum(2) if size.parts > 1 else means).view(2, samples, 1, channels)
    return Maps(student, teacher, False)


class Triton:
    """One read of both maps, whatever their types."""

    refuses = staticmethod(_backend.refuses_in_triton)

    @staticmethod
    def forward(student: Tensor, teacher: Tensor, distribution: str) -> Found:
        found, maps = reference.allocate(student, teacher, distribution), arranged(student, teacher, distribution)
        if found.row.numel() == 0:
            return found
        with on_device(student.device):
            if distribution != "channel":
                _rows(maps, *found)
                return found
            saved = found.row.new_empty(4, *found.row.shape)
            means = _means(maps)
            _rows(means, found.row, saved)
            share = torch.full_like(found.row, 1 / maps.student.shape[2])
            _gradient(share, means, found.row, saved, found.saved.unsqueeze(1))
        return found

    @staticmethod
    def backward(grad_row: Tensor, student: Tensor, teacher: Tensor, row: Tensor, saved: Tensor, distribution: str) -> Tensor:
        grad_x, maps = empty_gradient(student), arranged(student, teacher, distribution)
        if grad_x.numel():
            with on_device(student.device):
                _gradient(grad_row, maps, row, saved, arranged(grad_x, grad_x, distribution).student)
        return grad_x
