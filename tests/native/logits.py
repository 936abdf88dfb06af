"""The CUDA kernels of `logit_scores` and `grand_last` on CPU tensors, with the functions of backends of these op families."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from fastqat.ops.grand_last.op import Native as NormOperator
from fastqat.ops.logit_scores import reference
from fastqat.ops.logit_scores.op import Native as ScoreOperator

from .on_host import STORAGE, compiled, on_device, pointer


class Rows(ctypes.Structure):
    """A matrix as the C functions take it: address, elements between rows, storage type."""

    _fields_ = [("data", ctypes.c_void_p), ("step", ctypes.c_int64), ("storage", ctypes.c_int)]


def rows_of(*matrices: Tensor | None) -> ctypes.Array[Rows]:
    return (Rows * len(matrices))(*(Rows() if m is None else Rows(m.data_ptr(), m.stride(0), STORAGE.index(m.dtype)) for m in matrices))


class LogitsOnHost:
    """Arguments and results as those of the backends' own functions; every result was NaN, or True, before."""

    def __init__(self, folder: Path):
        self.library = compiled(folder, "logits_on_host", "-O1")

    def scores(self, logits: Tensor, targets: Tensor | None, teacher: Tensor | None) -> dict[str, Tensor]:
        out = {name: each.fill_(True if name == "correct" else torch.nan) for name, each in _allocated(logits, targets, teacher).items()}
        soft, hard = (targets, None) if targets is not None and targets.is_floating_point() else (None, targets)
        names = [name for name in reference.field_names(True, True) if name != "correct"]
        results = (ctypes.c_void_p * len(names))(*(pointer(out.get(name)) for name in names))
        sizes = (ctypes.c_int64(size) for size in logits.shape)
        self.library.scores(rows_of(logits, teacher, soft), pointer(hard), results, pointer(out.get("correct")), *sizes)
        return out

    def norms(self, logits: Tensor, targets: Tensor, features: Tensor, bias: bool) -> Tensor:
        out = torch.full((len(logits),), torch.nan)
        sizes = (ctypes.c_int64(size) for size in (*logits.shape, features.shape[1]))
        self.library.norms(rows_of(logits, features), pointer(targets), pointer(out), *sizes, ctypes.c_bool(bias))
        return out


class LogitsOnDevice:
    """The backends themselves on copies of the tensors in device memory, with their strides and alignment."""

    @staticmethod
    def scores(logits: Tensor, targets: Tensor | None, teacher: Tensor | None) -> dict[str, Tensor]:
        given = (None if t is None else on_device(t) for t in (logits, targets, teacher))
        names = _allocated(logits, targets, teacher)
        return {name: values.cpu() for name, values in zip(names, ScoreOperator.forward(*given), strict=True)}

    @staticmethod
    def norms(logits: Tensor, targets: Tensor, features: Tensor, bias: bool) -> Tensor:
        return NormOperator.forward(on_device(logits), targets.cuda(), on_device(features), bias).cpu()


def _allocated(logits: Tensor, targets: Tensor | None, teacher: Tensor | None) -> dict[str, Tensor]:
    return reference.allocate(logits, targets, teacher)
