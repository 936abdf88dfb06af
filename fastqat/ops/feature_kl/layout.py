"""How feature maps are read: ``[N, C, L]`` with neighbouring positions or neighbouring channels, any strides beside that."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Maps(NamedTuple):
    """Student and teacher ``[N, C, L]``, a softmax over L each; both with stride 1 along channels (`channels_inner`) or positions."""

    student: Tensor
    teacher: Tensor
    channels_inner: bool


def has_inner_channels(x: Tensor) -> bool:
    """Whether the channels of ``[N, C, ...]`` are neighbours in memory and its positions are not."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def arranged(student: Tensor, teacher: Tensor, distribution: str) -> Maps:
    """Both maps as the kernels read them, in the layout of the student; what does not lie so is copied (where the positions
    cannot be one dimension, as in a crop of a channels-last map, twice).

    ``"flat"`` gives all values of a sample as the positions of one channel, in the order of the student's memory.
    """
    inner = has_inner_channels(student)
    if distribution == "flat":
        return Maps(as_row(student, inner), as_row(teacher, inner), False)
    dim = 1 if inner else 2
    return Maps(_with_stride_1(as_map(student), dim), _with_stride_1(as_map(teacher), dim), inner)


def as_map(x: Tensor) -> Tensor:
    """``[N, C, L]``: all positions as one dimension, without a copy where strides allow it."""
    return x.unsqueeze(2) if x.dim() == 2 else x.flatten(2)


def as_row(x: Tensor, channels_inner: bool) -> Tensor:
    """``[N, 1, C · L]`` with neighbouring values; with `channels_inner` they go position by position."""
    x = as_map(x)
    return _with_stride_1((x.transpose(1, 2) if channels_inner else x).flatten(1).unsqueeze(1), 2)


def _with_stride_1(x: Tensor, dim: int) -> Tensor:
    """`x` with stride 1 along `dim`: itself, or one copy."""
    return x if x.stride(dim) == 1 or x.shape[dim] == 1 else x.transpose(dim, 2).contiguous().transpose(dim, 2)


def empty_gradient(student: Tensor) -> Tensor:
    """An empty dense tensor for the gradient of `student`: channels-last where that has neighbouring channels, else contiguous."""
    if not has_inner_channels(student):
        return torch.empty_like(student, memory_format=torch.contiguous_format)
    samples, channels, *positions = student.shape
    return student.new_empty(samples, *positions, channels).movedim(-1, 1)
