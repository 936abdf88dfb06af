"""The operators ``fastqat::feature_kl`` and ``fastqat::feature_kl_backward``: schema, backend pick, fake kernels, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _backend
from .._autograd import once
from .._library import define_op
from . import reference
from .launch import Triton
from .layout import arranged, empty_gradient
from .reference import Found

OP = "feature_kl"


class Native:
    """The C++ kernels behind ``fastqat._C``, for CPU tensors."""

    refuses = staticmethod(_backend.refuses_float64)

    @staticmethod
    def forward(student: Tensor, teacher: Tensor, distribution: str) -> Found:
        found, maps = reference.allocate(student, teacher, distribution), arranged(student, teacher, distribution)
        native = torch.ops.fastqat_native
        kernel = native.feature_kl_channel if distribution == "channel" else native.feature_kl
        kernel.default(maps.student, maps.teacher, *found, maps.channels_inner)
        return found

    @staticmethod
    def backward(grad_row: Tensor, student: Tensor, teacher: Tensor, row: Tensor, saved: Tensor, distribution: str) -> Tensor:
        grad_x, maps = empty_gradient(student), arranged(student, teacher, distribution)
        target = arranged(grad_x, grad_x, distribution).student
        backward = torch.ops.fastqat_native.feature_kl_backward.default
        backward(grad_row, maps.student, maps.teacher, row, saved, target, maps.channels_inner)
        return grad_x


_backend.register(OP, "reference", reference)
_backend.register(OP, "cpu", Native)
_backend.register(OP, "triton", Triton)


def _forward(student: Tensor, teacher: Tensor, distribution: str) -> Found:
    return _backend.pick(OP, student, teacher).forward(student, teacher, distribution)


def _forward_fake(student: Tensor, teacher: Tensor, distribution: str) -> Found:
    return reference.allocate(student, teacher, distribution)


def _backward(grad_row: Tensor, student: Tensor, teacher: Tensor, row: Tensor, saved: Tensor, distribution: str) -> Tensor:
    implementation = _backend.pick(OP, student, teacher)
    return implementation.backward(grad_row.to(row.dtype).contiguous(), student, teacher, row, saved, distribution)


def _backward_fake(grad_row: Tensor, student: Tensor, *_: Any) -> Tensor:
    return empty_gradient(student)


feature_kl = define_op("feature_kl(Tensor student, Tensor teacher, str distribution) -> (Tensor, Tensor)", _forward, _forward_fake)
feature_kl_backward = define_op(
    "feature_kl_backward(Tensor grad_row, Tensor student, Tensor teacher, Tensor row, Tensor saved, str distribution) -> Tensor",
    _backward,
    _backward_fake,
)


class FeatureKL(torch.autograd.Function):
    """Saves both maps and a few numbers per row; for ``"channel"`` one number per channel and no map at all."""

    @staticmethod
    def forward(student: Tensor, teacher: Tensor, distribution: str) -> tuple[Tensor, Tensor]:
        return feature_kl(student, teacher, distribution)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        student, teacher, ctx.distribution = inputs
        row, saved = output  # `saved` stays differentiable: through it a second derivative finds its way back, and is refused
        ctx.shape, ctx.dtype = student.shape, student.dtype
        ctx.save_for_backward(*((saved,) if ctx.distribution == "channel" else (student, teacher, row, saved)))

    @staticmethod
    @once
    def backward(ctx: Any, grad_row: Tensor, _: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]  # torch types it as *Any
        if ctx.distribution != "channel":
            return feature_kl_backward(grad_row, *ctx.saved_tensors, ctx.distribution), None, None
        (slope,) = ctx.saved_tensors
        grad = (grad_row.unsqueeze(1) * slope).to(ctx.dtype)  # the same at every position: nothing of the map's size is written
        return grad.view(*grad.shape, *[1] * (len(ctx.shape) - 2)).expand(ctx.shape), None, None
