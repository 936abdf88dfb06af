"""The Triton backend of fake quantization: allocates, cuts, launches. Triton itself is imported with the first launch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ... import _backend
from .._launch import on_device
from .._layout import View, by_storage, dense, from_storage, like, quant_view
from .reference import Grid, code_dtype
from .tiling import WARPS, Tiling, finish_tile, launch_options, tiling


@functools.cache
def _kernels() -> ModuleType:
    from . import kernels

    return kernels


def _scales(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point as the kernels read them: fp32 in the storage order of x."""
    zero_point = None if grid.zero_point is None else by_storage(x, grid.zero_point.to(torch.float32))
    return by_storage(x, grid.scale), zero_point


def _total(cut: Tiling, view: View) -> int | None:
    """Elements of a matrix whose last row is not whole, else None."""
    return view.outer * view.channels * view.inner if cut.by_column and cut.rows * cut.fold != view.outer else None


def _inner(cut: Tiling, view: View) -> int | None:
    """Neighbouring columns that share a scale; None where every column has its own."""
    return view.inner if cut.fold * view.inner > 1 else None


class Triton:
    """The Triton kernels, for CUDA tensors; interpreted ones (``TRITON_INTERPRET=1``) take CPU tensors."""

    refuses = staticmethod(_backend.refuses_in_triton)

    @staticmethod
    def forward(x: Tensor, grid: Grid) -> Tensor:
        x = dense(x)
        return _quantize(x, torch.empty_like(x), grid, codes=False)

    @staticmethod
    def codes(x: Tensor, grid: Grid) -> Tensor:
        x = dense(x)
        return _quantize(x, torch.empty_like(x, dtype=code_dtype(grid.qmin, grid.qmax)), grid, codes=True)

    @staticmethod
    def backward(
        grad_y: Tensor, x: Tensor, grid: Grid, grad_factor: float, needs_scale: bool, needs_zero_point: bool, in_place: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x = dense(x)
        grad = like(x, grad_y)
        grad_x = grad if in_place or grad is not grad_y else torch.empty_like(x)
        allocate = torch.empty if x.numel() else torch.zeros
        sums = [
            allocate(grid.scale.numel(), dtype=torch.float32, device=x.device) if wanted else None
            for wanted in (needs_scale, needs_zero_point)
        ]
        if x.numel():
            _gradients(x, grad, grad_x, grid, grad_factor, sums)
        grad_scale, grad_zero_point = (None if each is None else from_storage(x, each, grid.scale.shape) for each in sums)
        return grad_x, grad_scale, grad_zero_point


def _quantize(x: Tensor, out: Tensor, grid: Grid, codes: bool) -> Tensor:
    """Write x_hat or the codes of the dense `x` into `out`: one launch."""
    if x.numel() == 0:
        return out
    view = quant_view(x, grid.axis, grid.group_size)
    cut = tiling(view, x.element_size())
    with on_device(x.device):
        _kernels().fake_quant_kernel[(cut.programs,)](
            x,
            out,
            *_scales(x, grid),
            cut.rows,
            cut.width,
            _total(cut, view),
            view.channels,
            _inner(cut, view),
            float(grid.qmin),
            float(grid.qmax),
            CODES=codes,
            RECIPROCAL=grid.semantics == "reciprocal",
            BY_COLUMN=cut.by_column,
            **cut.constants,
            **cut.options,
        )
    return out


def _gradients(x: Tensor, grad_y: Tensor, grad_x: Tensor, grid: Grid, factor: float, sums: Sequence[Tensor | None]) -> None:
    """Write grad_x and the wanted sums: one launch, and a second where the sum of a scale comes from several programs."""
    view = quant_view(x, grid.axis, grid.group_size)
    cut = tiling(view, x.element_size(), backward=True)
    first = sums if cut.finishes else [None if each is None else x.new_empty(cut.partials, dtype=torch.float64) for each in sums]
    kernel, shape = _kernels().fake_quant_backward_rows_kernel, (view.outer, cut.rows, cut.width)
    if cut.by_column:
        kernel = _kernels().fake_quant_backward_columns_kernel
        shape = (cut.rows, cut.width, _total(cut, view), view.channels, _inner(cut, view), cut.chunks)  # type: ignore[assignment]  # longer
    with on_device(x.device):
        kernel[(cut.backward_programs,)](
            x,
            grad_y,
            grad_x,
            *_scales(x, grid),
            *first,
            *shape,
            cut.steps,
            float(grid.qmin),
            float(grid.qmax),
            float(factor) if cut.finishes else 1.0,
            RECIPROCAL=grid.semantics == "reciprocal",
            RUN=cut.run,
            **cut.constants,
            **cut.options,
        )
        if not cut.finishes and any(each is not None for each in sums):
            _finish(first, sums, cut, view, float(factor))


def _finish(partials: Sequence[Tensor | None], sums: Sequence[Tensor | None], cut: Tiling, view: View, factor: float) -> None:
    """The second stage: partials [blocks, repeats, channels, run] in fp64, one result per scale."""
    scales = view.blocks * view.channels
    repeats, run = (cut.chunks * cut.fold, view.inner) if cut.by_column else (cut.chunks, 1)
    tile_scales, parts = finish_tile(scales, repeats * run)
    _kernels().fake_quant_finish_kernel[(-(-scales // tile_scales),)](
        *partials,
        *sums,
        scales,
        view.channels,
        repeats,
        run,
        factor,
        SCALES=tile_scales,
        PARTS=parts,
        **launch_options(WARPS),
    )
