"""The CUDA kernels of layers with an affine part on CPU tensors, with the function of a backend of the op family ``affine_grad_norm``."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from fastqat.ops.affine_grad_norm.layout import arranged
from fastqat.ops.affine_grad_norm.op import Native
from fastqat.ops.affine_grad_norm.reference import KINDS, Statistics

from .on_host import STORAGE, array, compiled, on_device, pointer


class AffineOnHost:
    """Arguments and results as those of the backends' own function; every result was NaN before."""

    def __init__(self, folder: Path):
        self.library = compiled(folder, "affine_grad_norm_on_host", "-O1")

    def sq_norm(self, x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool, bias: bool) -> Tensor:
        kind, mean, var, groups, eps = statistics
        x, grad_y, channels_inner = arranged(x, grad_y, kind in ("position", "rms"))
        out = torch.full((x.shape[0],), torch.nan)
        tensors = (ctypes.byref(array(x)), ctypes.byref(array(grad_y)), *map(pointer, (mean, var, out)))
        numbers = (ctypes.c_int64(KINDS.index(kind)), ctypes.c_int64(groups), ctypes.c_double(eps))
        flags = (ctypes.c_bool(flag) for flag in (channels_inner, weight, bias))
        self.library.sq_norm(*tensors, *numbers, *flags, ctypes.c_int(STORAGE.index(x.dtype)))
        return out


class AffineOnDevice:
    """The backend itself on copies of the tensors in device memory, with their strides and alignment."""

    @staticmethod
    def sq_norm(x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool, bias: bool) -> Tensor:
        mean, var = (None if each is None else each.cuda() for each in (statistics.mean, statistics.var))
        return Native.sq_norm(on_device(x), on_device(grad_y), statistics._replace(mean=mean, var=var), weight, bias).cpu()
