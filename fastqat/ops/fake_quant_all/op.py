"""The operators ``fastqat::fake_quant_all`` and ``fake_quant_all_backward``: schema, backend pick, fake kernels, autograd.

Every output is a tensor of its own: none is a view of another, each can be freed alone, and memory that was used before is used again
(one buffer for all would be mapped and cleared by the system at every call, which takes longer than the work itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _backend
from .._autograd import once
from .._layout import dense, from_storage, like, quant_view
from .._library import define_op
from ..fake_quant.reference import SEMANTICS, Grid
from . import reference
from .launch import TritonAll, stored_scales
from .reference import Gradients, Needs

OP = "fake_quant_all"
CODE = 5
"""Integers that describe one grid in the operators' `codes`: qmin, qmax, axis or −1, group size or 0, index into SEMANTICS."""

ZeroPoints = Sequence[Tensor | None]


class Native:
    """The compiled kernels: one parallel region over the tasks of all tensors on a CPU, a launch for each kind of tensor on a GPU."""

    refuses = staticmethod(_backend.refuses_float64)

    @staticmethod
    def forward(xs: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        xs = [dense(x) for x in xs]
        x_hats = [torch.empty_like(x) for x in xs]
        torch.ops.fastqat_native.fake_quant_all(xs, *_all_scales(xs, grids), x_hats, _all_numbers(xs, grids))
        return x_hats

    @staticmethod
    def backward(
        grad_ys: Sequence[Tensor], xs: Sequence[Tensor], grids: Sequence[Grid], grad_factors: Sequence[float], needs: Needs
    ) -> list[Gradients]:
        xs = [dense(x) for x in xs]
        grads = [like(x, grad_y) for x, grad_y in zip(xs, grad_ys, strict=True)]
        grad_xs = [torch.empty_like(grad) if grad is grad_y else grad for grad, grad_y in zip(grads, grad_ys, strict=True)]
        sums = [
            tuple(x.new_empty(grid.scale.numel(), dtype=torch.float32) if wanted else None for wanted in need)
            for x, grid, need in zip(xs, grids, needs, strict=True)
        ]
        torch.ops.fastqat_native.fake_quant_all_backward(
            xs, *_all_scales(xs, grids), grads, grad_xs, *zip(*sums, strict=True), _all_numbers(xs, grids), list(grad_factors)
        )
        return [
            (grad_x, *(None if each is None else from_storage(x, each, grid.scale.shape) for each in both))  # type: ignore[misc]
            for grad_x, both, x, grid in zip(grad_xs, sums, xs, grids, strict=True)
        ]  # mypy does not count the elements of a generator


def _all_scales(xs: Sequence[Tensor], grids: Sequence[Grid]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Scales and zero points as the kernels read them."""
    scales, zero_points = zip(*(stored_scales(x, grid) for x, grid in zip(xs, grids, strict=True)), strict=True)
    return list(scales), list(zero_points)


def _all_numbers(xs: Sequence[Tensor], grids: Sequence[Grid]) -> list[int | bool]:
    """blocks, outer, channels, inner, qmin, qmax, reciprocal of every tensor, one after the other."""
    numbers: list[int | bool] = []
    for x, grid in zip(xs, grids, strict=True):
        numbers += (*quant_view(x, grid.axis, grid.group_size), grid.qmin, grid.qmax, grid.semantics == "reciprocal")
    return numbers


_backend.register(OP, "reference", reference)
_backend.register(OP, "cpu", Native)
_backend.register(OP, "triton", TritonAll)
_backend.register(OP, "cuda", Native)


def pack(grid: Sequence[Any]) -> list[int]:
    """The numbers of one grid (qmin, qmax, axis, group_size, semantics) as the operators take them."""
    qmin, qmax, axis, group_size, semantics = grid
    return [qmin, qmax, -1 if axis is None else axis, group_size or 0, SEMANTICS.index(semantics)]


def _grids(scales: Sequence[Tensor], zero_points: ZeroPoints, codes: Sequence[int]) -> list[Grid]:
    rows = (codes[i : i + CODE] for i in range(0, len(codes), CODE))
    return [
        Grid(scale, zero_point, qmin, qmax, None if axis < 0 else axis, group_size or None, SEMANTICS[semantics])
        for scale, zero_point, (qmin, qmax, axis, group_size, semantics) in zip(scales, zero_points, rows, strict=True)
    ]


def _forward(xs: list[Tensor], scales: list[Tensor], zero_points: ZeroPoints, codes: list[int]) -> list[Tensor]:
    return _backend.pick(OP, *xs).forward(xs, _grids(scales, zero_points, codes))


def _forward_fake(xs: list[Tensor], scales: list[Tensor], zero_points: ZeroPoints, codes: list[int]) -> list[Tensor]:
    return [torch.empty_like(x) for x in xs]


def _backward(
    grad_ys: list[Tensor],
    xs: list[Tensor],
    scales: list[Tensor],
    zero_points: ZeroPoints,
    codes: list[int],
    grad_factors: list[float],
    needs: list[bool],
) -> list[Tensor]:
    pairs = list(zip(needs[::2], needs[1::2], strict=True))
    found = _backend.pick(OP, *xs).backward(grad_ys, xs, _grids(scales, zero_points, codes), grad_factors, pairs)
    return [grad for gradients in found for grad in gradients if grad is not None]


def _backward_fake(grad_ys: list[Tensor], xs: list[Tensor], scales: list[Tensor], *options: Any) -> list[Tensor]:
    needs = options[-1]
    return [
        torch.empty_like(like)
        for x, scale, need_scale, need_zero_point in zip(xs, scales, needs[::2], needs[1::2], strict=True)
        for like, wanted in ((x, True), (scale, need_scale), (scale, need_zero_point))
        if wanted
    ]


_MANY = "Tensor[] xs, Tensor[] scales, Tensor?[] zero_points, int[] codes"
fake_quant_all = define_op(f"fake_quant_all({_MANY}) -> Tensor[]", _forward, _forward_fake)
fake_quant_all_backward = define_op(
    f"fake_quant_all_backward(Tensor[] grad_ys, {_MANY}, float[] grad_factors, bool[] needs) -> Tensor[]", _backward, _backward_fake
)


class FakeQuantizeAll(torch.autograd.Function):
    """Saves xs, scales and zero points. An output that nothing used sends no gradient, and costs nothing in the backward pass."""

    @staticmethod
    def forward(ctx: Any, codes: list[int], grad_factors: list[float], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """tensors: all xs, all scales, all zero points."""
        n = len(grad_factors)
        ctx.save_for_backward(*tensors)
        ctx.codes, ctx.grad_factors = codes, grad_factors
        if not torch.compiler.is_compiling():  # dynamo knows no such switch; a compiled graph drops what is not used by itself
            ctx.set_materialize_grads(False)
        x_hats = fake_quant_all(list(tensors[:n]), list(tensors[n : 2 * n]), list(tensors[2 * n :]), codes)
        constant = [x_hat for i, x_hat in enumerate(x_hats) if not any(t is not None and t.requires_grad for t in tensors[i::n])]
        ctx.mark_non_differentiable(*constant)
        return tuple(x_hats)

    @staticmethod
    @once
    def backward(ctx: Any, *grad_ys: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it as *Any
        n = len(grad_ys)
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        grads: list[Tensor | None] = [None] * (3 * n)
        used = [i for i in range(n) if grad_ys[i] is not None and any(needed[i::n])]
        if not used:
            return None, None, *grads
        found = fake_quant_all_backward(
            [grad_ys[i] for i in used],
            *([inputs[start + i] for i in used] for start in (0, n, 2 * n)),
            [number for i in used for number in ctx.codes[CODE * i : CODE * (i + 1)]],
            [ctx.grad_factors[i] for i in used],
            [needed[start + i] for i in used for start in (n, 2 * n)],
        )
        computed = [k for i in used for k in (i, n + i, 2 * n + i) if k == i or needed[k]]
        for k, grad in zip(computed, found, strict=True):
            if needed[k]:
                grads[k] = grad if k < 2 * n else grad.to(inputs[k].dtype).reshape(inputs[k].shape)
        return None, None, *grads
