"""The operators ``fastqat::fake_quant``, ``fake_quant_backward``, ``quantize_codes``: schema, backend pick, fake kernels, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ... import _backend
from .._layout import channel_view, dense, like
from .._library import define_op
from . import reference

OP = "fake_quant"


class Native:
    """The C++ kernels behind ``fastqat._C``, for CPU tensors."""

    IN_PLACE = True  # backward takes in_place=True

    @staticmethod
    def refuses(*tensors: Tensor) -> str | None:
        """fp64 is served by the reference only."""
        return "float64 runs on the reference backend only" if any(t.dtype == torch.float64 for t in tensors) else None

    @staticmethod
    def forward(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None, semantics: str) -> Tensor:
        x = dense(x)
        x_hat = torch.empty_like(x)
        zero_point = _as_float(zero_point)
        torch.ops.fastqat_native.fake_quant(
            x, scale.contiguous(), zero_point, x_hat, *channel_view(x, axis), qmin, qmax, semantics == "reciprocal"
        )
        return x_hat

    @staticmethod
    def codes(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None, semantics: str) -> Tensor:
        x = dense(x)
        out = torch.empty_like(x, dtype=reference.code_dtype(qmin, qmax))
        zero_point = _as_float(zero_point)
        torch.ops.fastqat_native.quantize_codes(
            x, scale.contiguous(), zero_point, out, *channel_view(x, axis), qmin, qmax, semantics == "reciprocal"
        )
        return out

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        qmin: int,
        qmax: int,
        axis: int | None,
        semantics: str,
        grad_factor: float,
        needs_scale: bool,
        needs_zero_point: bool,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`in_place` lets grad_x overwrite grad_y where their layouts agree."""
        x = dense(x)
        given = grad_y
        grad_y = like(x, grad_y)
        grad_x = grad_y if in_place or grad_y is not given else torch.empty_like(x)
        grad_scale = torch.empty_like(scale, memory_format=torch.contiguous_format) if needs_scale else None
        grad_zero_point = torch.empty_like(scale, memory_format=torch.contiguous_format) if needs_zero_point else None
        torch.ops.fastqat_native.fake_quant_backward(
            x,
            scale.contiguous(),
            _as_float(zero_point),
            grad_y,
            grad_x,
            grad_scale,
            grad_zero_point,
            *channel_view(x, axis),
            qmin,
            qmax,
            semantics == "reciprocal",
            grad_factor,
        )
        return grad_x, grad_scale, grad_zero_point


def _as_float(zero_point: Tensor | None) -> Tensor | None:
    return None if zero_point is None else zero_point.to(torch.float32).contiguous()


_backend.register(OP, "reference", reference)
_backend.register(OP, "cpu", Native)


def _forward(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None, semantics: str) -> Tensor:
    return _backend.pick(OP, x, scale).forward(x, scale, zero_point, qmin, qmax, axis, semantics)


def _forward_fake(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None, semantics: str) -> Tensor:
    return torch.empty_like(x)


def _codes(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None, semantics: str) -> Tensor:
    return _backend.pick(OP, x, scale).codes(x, scale, zero_point, qmin, qmax, axis, semantics)


def _codes_fake(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, axis: int | None, semantics: str) -> Tensor:
    return torch.empty_like(x, dtype=reference.code_dtype(qmin, qmax))


def _backward(grad_y: Tensor, x: Tensor, scale: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_scale, grad_zero_point = _backend.pick(OP, x, scale).backward(grad_y, x, scale, *options)
    nothing = scale.new_empty(0)
    return grad_x, nothing if grad_scale is None else grad_scale, nothing if grad_zero_point is None else grad_zero_point


def _backward_fake(grad_y: Tensor, x: Tensor, scale: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_scale, grad_zero_point = (torch.empty_like(scale) if wanted else scale.new_empty(0) for wanted in options[-2:])
    return torch.empty_like(x), grad_scale, grad_zero_point


_RANGE = "Tensor x, Tensor scale, Tensor? zero_point, int qmin, int qmax, int? axis, str semantics"
fake_quant = define_op(f"fake_quant({_RANGE}) -> Tensor", _forward, _forward_fake)
quantize_codes = define_op(f"quantize_codes({_RANGE}) -> Tensor", _codes, _codes_fake)
fake_quant_backward = define_op(
    f"fake_quant_backward(Tensor grad_y, {_RANGE}, float grad_factor, bool needs_scale, bool needs_zero_point) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


class FakeQuantize(torch.autograd.Function):
    """Saves x, scale and zero point; the backward recomputes the rest in one pass over x and grad_y."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        qmin: int,
        qmax: int,
        axis: int | None,
        semantics: str,
        grad_factor: float,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.options = (qmin, qmax, axis, semantics, grad_factor)
        return fake_quant(x, scale, zero_point, qmin, qmax, axis, semantics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it as *Any
        x, scale, zero_point = ctx.saved_tensors
        _, needs_scale, needs_zero_point = ctx.needs_input_grad[:3]
        grad_x, grad_scale, grad_zero_point = fake_quant_backward(grad_y, x, scale, zero_point, *ctx.options, needs_scale, needs_zero_point)
        return (
            grad_x if ctx.needs_input_grad[0] else None,
            grad_scale if needs_scale else None,
            grad_zero_point.to(zero_point.dtype) if needs_zero_point else None,
            *[None] * 5,
        )
