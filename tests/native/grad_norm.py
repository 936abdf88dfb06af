"""The CUDA kernels of the per-sample gradient norms on CPU tensors, with the functions of a backend of the op family ``grad_norm``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastqat.ops.grad_norm.forms import Form
from fastqat.ops.grad_norm.geometry import Geometry
from fastqat.ops.grad_norm.native import Cuda

from .on_host import STORAGE, array, compiled, on_device, pointer

Results = tuple[Tensor, Tensor | None]


class GradNormOnHost:
    """Arguments and results as those of the backends' own functions; every result was NaN before."""

    def __init__(self, folder: Path):
        self.library = compiled(folder, "grad_norm_on_host", "-O1")

    def direct(self, x: Tensor, grad_y: Tensor, mask: Tensor | None, slope: Tensor | None, geometry: Geometry, bias: bool) -> Results:
        weights = [None if each is None else each.permute(0, 2, 3, 4, 1).contiguous() for each in (mask, slope)]
        sq_norm = torch.full((x.shape[0],), torch.nan)
        inner = None if slope is None else torch.full(grad_y.shape[:2], torch.nan)
        self._call("direct", x, grad_y, geometry, ctypes.c_bool(bias), *map(pointer, (*weights, sq_norm, inner)))
        return sq_norm, inner

    def gram(self, x: Tensor, grad_y: Tensor, mask: Tensor | None, geometry: Geometry, bias: bool, form: Form) -> Tensor:
        sq_norm = torch.full((x.shape[0],), torch.nan)
        self._call("gram", x, grad_y, geometry, ctypes.c_bool(bias), pointer(sq_norm))
        return sq_norm

    def chosen(self, x: Tensor, grad_y: Tensor, geometry: Geometry) -> tuple[str, str, int, int]:
        """How x and grad_y are read, rows and columns of the tile of the direct form."""
        found = (ctypes.c_int64 * 4)()
        self._call("chosen", x, grad_y, geometry, found)
        names = ("channels", "positions", "channel vectors", "position vectors")
        return names[found[0]], names[found[1]], found[2], found[3]

    def _call(self, function: str, x: Tensor, grad_y: Tensor, geometry: Geometry, *arguments: Any) -> None:
        numbers = (ctypes.c_int64 * 13)(*geometry.encode())
        inputs = (ctypes.byref(array(x)), ctypes.byref(array(grad_y)), numbers, ctypes.c_int(STORAGE.index(x.dtype)))
        getattr(self.library, function)(*inputs, *arguments)


class GradNormOnDevice:
    """The backend itself on copies of the tensors in device memory, with their strides and alignment."""

    @staticmethod
    def direct(x: Tensor, grad_y: Tensor, mask: Tensor | None, slope: Tensor | None, geometry: Geometry, bias: bool) -> Results:
        weights = (None if each is None else each.cuda() for each in (mask, slope))
        sq_norm, inner = Cuda.direct(on_device(x), on_device(grad_y), *weights, geometry, bias)
        return sq_norm.cpu(), None if inner is None else inner.cpu()

    @staticmethod
    def gram(x: Tensor, grad_y: Tensor, mask: Tensor | None, geometry: Geometry, bias: bool, form: Form) -> Tensor:
        return Cuda.gram(on_device(x), on_device(grad_y), mask, geometry, bias, form).cpu()


def drawn(shape: Sequence[int], outputs: int, geometry: Geometry, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal x ``[N, C, D, H, W]`` and grad_y to it, in fp32."""
    generator = torch.Generator().manual_seed(seed)
    size = geometry.output_size(shape[2:])
    return torch.randn(*shape, generator=generator), torch.randn(shape[0], outputs, *size, generator=generator)
