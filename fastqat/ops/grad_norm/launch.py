"""The Triton backend of gradient norms: finds addresses, cuts, allocates, launches. Triton itself is imported with the first launch."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from ... import _backend
from .._launch import on_device
from .._tiles import ceil_div
from .addresses import Addresses, addresses
from .forms import Form
from .geometry import Geometry
from .tiling import ROW, direct_tiling, finish_tile, gram_tiling, grouped, grouped_tiling, launch_options, masked_row_tiling


@functools.cache
def _kernels() -> ModuleType:
    from . import kernels

    return kernels


class Triton:
    """The Triton kernels, for CUDA tensors; interpreted ones (``TRITON_INTERPRET=1``) take CPU tensors.

    There is no shifted form: products of pixels that lie in registers cannot be read again at another place. A masked norm takes the
    direct form, which knows the gradient.
    """

    FORMS: tuple[Form, ...] = ("direct", "gram")
    refuses = staticmethod(_backend.refuses_in_triton)

    @staticmethod
    def masked_forms(mask: Tensor) -> tuple[Form, ...]:
        return ("direct",)

    @staticmethod
    def direct(
        x: Tensor, grad_y: Tensor, mask: Tensor | None, slope: Tensor | None, geometry: Geometry, bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        where = addresses(x, grad_y, geometry)
        samples, masked = x.shape[0], mask is not None or slope is not None
        if masked and where.conv.positions == 1:
            return _masked_rows(x, grad_y, mask, slope, where, bias)
        apart = grouped(where.conv)
        cut = (grouped_tiling if apart else direct_tiling)(where.conv, samples, x.element_size(), masked)
        parts = x.new_empty(samples, cut.parts, 1, dtype=torch.float32)
        inner = None if slope is None else x.new_empty(samples, cut.column_tiles, grad_y.shape[1], dtype=torch.float32)
        kernel = _kernels().grad_norm_grouped_kernel if apart else _kernels().grad_norm_direct_kernel
        with on_device(x.device):
            kernel[(cut.programs,)](
                x,
                grad_y,
                _by_columns(mask),
                _by_columns(slope),
                parts,
                inner,
                where.conv,
                samples,
                cut.repeat,
                BIAS=bias,
                **where.constants,
                **cut.constants,
                **cut.options,
            )
            return _summed(parts)[:, 0], None if inner is None else _summed(inner)

    @staticmethod
    def gram(x: Tensor, grad_y: Tensor, mask: Tensor | None, geometry: Geometry, bias: bool, form: Form) -> Tensor:
        where = addresses(x, grad_y, geometry)
        if where.conv.positions == 1:
            return _rows(x, grad_y, where, bias)
        cut = gram_tiling(where.conv, x.shape[0], x.element_size())
        parts = x.new_empty(x.shape[0], cut.parts, 1, dtype=torch.float32)
        with on_device(x.device):
            _kernels().grad_norm_gram_kernel[(cut.programs,)](
                x, grad_y, parts, where.conv, BIAS=bias, CLAMP=cut.parts == 1, **where.constants, **cut.constants, **cut.options
            )
            return _summed(parts, clamp=True)[:, 0]


def _rows(x: Tensor, grad_y: Tensor, where: Addresses, bias: bool) -> Tensor:
    """One position per sample: the product of two squared norms."""
    samples, groups = x.shape[0], where.conv.groups
    parts = x.new_empty(samples, groups, 1, dtype=torch.float32)
    with on_device(x.device):
        _kernels().grad_norm_row_kernel[(samples * groups,)](
            x, grad_y, parts, where.conv, BIAS=bias, BLOCK=ROW, **where.constants, **launch_options(4)
        )
        return _summed(parts)[:, 0]


def _masked_rows(
    x: Tensor, grad_y: Tensor, mask: Tensor | None, slope: Tensor | None, where: Addresses, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The same with a mask or a slope, which many samples then share."""
    samples, outputs = grad_y.shape[:2]
    cut = masked_row_tiling(where.conv, samples)
    parts = x.new_empty(samples, cut.parts, 1, dtype=torch.float32)
    inner = None if slope is None else x.new_empty(samples, outputs, dtype=torch.float32)
    with on_device(x.device):
        _kernels().grad_norm_masked_row_kernel[(cut.programs,)](
            x,
            grad_y,
            _by_columns(mask),
            _by_columns(slope),
            parts,
            inner,
            where.conv,
            samples,
            BIAS=bias,
            **where.constants,
            **cut.constants,
            **cut.options,
        )
        return _summed(parts)[:, 0], inner


def _by_columns(weights: Tensor | None) -> Tensor | None:
    """``[O, C / groups, kd, kh, kw]`` in the kernels' order ``[O, kd, kh, kw, C / groups]``."""
    return None if weights is None else weights.permute(0, 2, 3, 4, 1).contiguous()


def _summed(parts: Tensor, clamp: bool = False) -> Tensor:
    """``[rows, parts, width]`` → ``[rows, width]``; a single part is the sum, already clamped."""
    rows, count, width = parts.shape
    if count == 1:
        return parts[:, 0]
    out = parts.new_empty(rows, width)
    results, wide = finish_tile(rows * width, count)
    _kernels().grad_norm_finish_kernel[(ceil_div(rows * width, results),)](
        parts, out, rows * width, count, width, CLAMP=clamp, RESULTS=results, PARTS=wide, **launch_options(4)
    )
    return out
