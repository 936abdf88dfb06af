"""Backward pass of a quantized input whose sums are per sample: the kernels are given a copy of every scale for each sample.

grad_x comes out of the same pass with the same bits, and the gradients of the batch are the sums over the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _backend
from .._layout import dense
from ..fake_quant.op import OP as FAKE_QUANT
from ..fake_quant.reference import Grid
from .op import Operand, nothing


class InputSide(NamedTuple):
    """The gradient of x, and those of scale and zero point ``[N, scales]``, or empty."""

    grad_x: Tensor
    scale: Tensor
    zero_point: Tensor


def over_samples(sums: Tensor, quant: Operand) -> Tensor:
    """Gradients ``[N, scales]`` of scale or zero point for the whole batch, shaped like the scale: summed in fp64."""
    assert quant.scale is not None
    return sums.sum(0, dtype=torch.float64).to(sums.dtype).reshape(quant.scale.shape)


def input_side_per_sample(
    grad: Tensor, x: Tensor, quant: Operand, factor: float, per_scale: bool, scale: bool, zero_point: bool
) -> InputSide:
    """From the gradient of x_hat, which is overwritten; scale and zero point where asked for, `factor` and `per_scale` as in `Operand`."""
    if not quant.code:
        return InputSide(grad, nothing(x), nothing(x))
    grid = quant.grid()
    if x.numel() == 0:
        zeros = grid.scale.new_zeros(x.shape[0], grid.scale.numel())
        return InputSide(grad, zeros if scale else nothing(x), zeros.clone() if zero_point else nothing(x))
    x, factor = dense(x), quant.factor(x, factor, per_scale)
    rows, cut = _by_sample(x, grid)
    backward = _backend.pick(FAKE_QUANT, x).backward
    grad_x, *sums = backward(rows.cut(grad), rows.cut(x), cut, factor, scale, zero_point, in_place=True)
    of_scale, of_zero_point = (nothing(x) if each is None else each.reshape(x.shape[0], -1) for each in sums)
    return InputSide(rows.join(grad_x), of_scale, of_zero_point)


class _Rows(NamedTuple):
    """How tensors like x are cut so that the scales of a sample are its own, and back."""

    cut: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]


def _by_sample(x: Tensor, grid: Grid) -> tuple[_Rows, Grid]:
    """Views of the dense `x` where its layout has the sample or the channel outermost or innermost, else copies."""
    samples = x.shape[0]

    def repeated(values: Tensor | None, *shape: int) -> Tensor | None:
        return None if values is None else values.reshape(1, -1).expand(samples, -1).reshape(shape)

    def with_scales(axis: int, group_size: int | None, *shape: int) -> Grid:
        scale = repeated(grid.scale, *shape)
        assert scale is not None
        return grid._replace(scale=scale, zero_point=repeated(grid.zero_point, *shape), axis=axis, group_size=group_size)

    if grid.axis is None:
        return _Rows(lambda t: t, lambda t: t), with_scales(0, None, -1)
    axis, channels = grid.axis, x.shape[grid.axis]
    last = x.movedim(axis, -1)
    shape = last.shape
    if last.is_contiguous():  # channels-last: [N, T, C], a group of all T positions for each sample and channel
        positions = last[0, ..., 0].numel()
        rows = _Rows(lambda t: t.movedim(axis, -1).reshape(samples, positions, channels), lambda t: t.reshape(shape).movedim(-1, axis))
        return rows, with_scales(1, positions, samples, 1, channels)
    moved = x.movedim(axis, 1).shape
    rows = _Rows(lambda t: t.movedim(axis, 1).reshape(samples * channels, -1), lambda t: t.reshape(moved).movedim(1, axis))
    return rows, with_scales(0, None, -1)
