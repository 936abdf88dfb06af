"""The operator ``fastqat::affine_grad_sq_norm``: schema, choice of backend, fake kernel. It has no gradient of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _backend
from .._library import define_op
from . import reference
from .launch import Triton
from .layout import arranged
from .reference import KINDS, Statistics

OP = "affine_grad_norm"


class Native:
    """The C++ kernels behind ``fastqat._C``, for CPU tensors, and those behind ``fastqat._C_cuda``, for CUDA tensors."""

    refuses = staticmethod(_backend.refuses_float64)

    @staticmethod
    def sq_norm(x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool, bias: bool) -> Tensor:
        kind, mean, var, groups, eps = statistics
        x, grad_y, channels_inner = arranged(x, grad_y, kind in ("position", "rms"))
        given = (None if t is None else t.to(torch.float32).contiguous() for t in (mean, var))
        out = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        native = torch.ops.fastqat_native.affine_grad_sq_norm
        native(x, grad_y, *given, out, KINDS.index(kind), groups, eps, channels_inner, weight, bias)
        return out


_backend.register(OP, "reference", reference)
_backend.register(OP, "triton", Triton)
_backend.register(OP, "cpu", Native)
_backend.register(OP, "cuda", Native)


def _forward(
    x: Tensor, grad_y: Tensor, kind: str, mean: Tensor | None, var: Tensor | None, groups: int, eps: float, weight: bool, bias: bool
) -> Tensor:
    dtype = torch.promote_types(x.dtype, grad_y.dtype)
    x, grad_y = x.to(dtype), grad_y.to(dtype)
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], dtype=torch.promote_types(dtype, torch.float32))
    return _backend.pick(OP, x, grad_y).sq_norm(x, grad_y, Statistics(kind, mean, var, groups, eps), weight, bias)


def _fake(
    x: Tensor, grad_y: Tensor, kind: str, mean: Tensor | None, var: Tensor | None, groups: int, eps: float, weight: bool, bias: bool
) -> Tensor:
    dtype = torch.promote_types(x.dtype, grad_y.dtype)
    return x.new_empty(x.shape[0], dtype=torch.promote_types(dtype, torch.float32))


# x and grad_y [N, C, T], any strides, in one dtype or two (then both in the wider one); kind: of `Statistics`.
affine_grad_sq_norm = define_op(
    "affine_grad_sq_norm(Tensor x, Tensor grad_y, str kind, Tensor? mean, Tensor? var, int groups, float eps, bool weight, bool bias) "
    "-> Tensor",
    _forward,
    _fake,
)


def sq_norm(x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool = True, bias: bool = True) -> Tensor:
    """``[N]``: squared norm of each sample's gradients of weight and bias, whichever are asked for.

    Σ_c (Σ_t grad_y · x_hat)² + Σ_c (Σ_t grad_y)²; x and grad_y ``[N, C, T]`` are read once, nothing of their size is written.
    fp32, fp64 for fp64; deterministic.
    """
    return affine_grad_sq_norm(x, grad_y, *statistics, weight, bias)
