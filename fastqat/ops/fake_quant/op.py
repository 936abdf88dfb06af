"""The operators ``fastqat::fake_quant``, ``fake_quant_backward``, ``quantize_codes``: schema, backend pick, fake kernels, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _backend
from .._autograd import once, op_function
from .._layout import by_storage, dense, from_storage, like, quant_view
from .._library import define_op, define_vmap
from . import reference, vmap
from .launch import Triton
from .reference import Grid, code_dtype

OP = "fake_quant"


class Native:
    """The C++ kernels: those of ``fastqat._C`` for CPU tensors, those of ``fastqat._C_cuda`` for CUDA tensors."""

    refuses = staticmethod(_backend.refuses_float64)

    @staticmethod
    def forward(x: Tensor, grid: Grid) -> Tensor:
        x = dense(x)
        x_hat = torch.empty_like(x)
        torch.ops.fastqat_native.fake_quant.default(x, *_scales(x, grid), x_hat, *_numbers(x, grid))
        return x_hat

    @staticmethod
    def codes(x: Tensor, grid: Grid) -> Tensor:
        x = dense(x)
        codes = torch.empty_like(x, dtype=code_dtype(grid.qmin, grid.qmax))
        torch.ops.fastqat_native.quantize_codes.default(x, *_scales(x, grid), codes, *_numbers(x, grid))
        return codes

    @staticmethod
    def backward(
        grad_y: Tensor, x: Tensor, grid: Grid, grad_factor: float, needs_scale: bool, needs_zero_point: bool, in_place: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x = dense(x)
        grad = like(x, grad_y)
        grad_x = grad if in_place or grad is not grad_y else torch.empty_like(x)
        sums = tuple(
            torch.empty_like(grid.scale, dtype=torch.float32, memory_format=torch.contiguous_format) if wanted else None
            for wanted in (needs_scale, needs_zero_point)
        )
        torch.ops.fastqat_native.fake_quant_backward.default(x, *_scales(x, grid), grad, grad_x, *sums, *_numbers(x, grid), grad_factor)
        grad_scale, grad_zero_point = (None if each is None else from_storage(x, each, grid.scale.shape) for each in sums)
        return grad_x, grad_scale, grad_zero_point


def _scales(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point as the kernels read them: fp32 in the storage order of x."""
    zero_point = None if grid.zero_point is None else by_storage(x, grid.zero_point.to(torch.float32))
    return by_storage(x, grid.scale), zero_point


def _numbers(x: Tensor, grid: Grid) -> tuple[int | bool, ...]:
    """blocks, outer, channels, inner, qmin, qmax, reciprocal."""
    return *quant_view(x, grid.axis, grid.group_size), grid.qmin, grid.qmax, grid.semantics == "reciprocal"


_backend.register(OP, "reference", reference)
_backend.register(OP, "triton", Triton)
_backend.register(OP, "cpu", Native)
_backend.register(OP, "cuda", Native)


# Each implementation takes the operator's arguments in the order of its schema; the seven after x are those of a Grid.
def _forward(x: Tensor, scale: Tensor, *grid: Any) -> Tensor:
    return _backend.pick(OP, x).forward(x, Grid(scale, *grid))


def _forward_fake(x: Tensor, scale: Tensor, *grid: Any) -> Tensor:
    return torch.empty_like(x)


def _codes(x: Tensor, scale: Tensor, *grid: Any) -> Tensor:
    return _backend.pick(OP, x).codes(x, Grid(scale, *grid))


def _codes_fake(x: Tensor, scale: Tensor, *grid: Any) -> Tensor:
    _, qmin, qmax, *_ = grid
    return torch.empty_like(x, dtype=code_dtype(qmin, qmax))


def _backward(grad_y: Tensor, x: Tensor, scale: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    grid = Grid(scale, *options[:6])
    grad_x, grad_scale, grad_zero_point = _backend.pick(OP, x).backward(grad_y, x, grid, *options[6:])
    sums = (scale.new_empty(0) if grad is None else grad for grad in (grad_scale, grad_zero_point))  # outputs must not alias
    return grad_x, *sums  # type: ignore[return-value]  # mypy does not count the elements of a generator


def _backward_fake(grad_y: Tensor, x: Tensor, scale: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_scale, grad_zero_point = (torch.empty_like(scale) if wanted else scale.new_empty(0) for wanted in options[-2:])
    return torch.empty_like(x), grad_scale, grad_zero_point


_RANGE = "Tensor x, Tensor scale, Tensor? zero_point, int qmin, int qmax, int? axis, int? group_size, str semantics"
fake_quant = define_op(f"fake_quant({_RANGE}) -> Tensor", _forward, _forward_fake)
quantize_codes = define_op(f"quantize_codes({_RANGE}) -> Tensor", _codes, _codes_fake)
fake_quant_backward = define_op(
    f"fake_quant_backward(Tensor grad_y, {_RANGE}, float grad_factor, bool needs_scale, bool needs_zero_point) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


define_vmap(fake_quant, vmap.values_rule(fake_quant))
define_vmap(quantize_codes, vmap.values_rule(quantize_codes))
define_vmap(fake_quant_backward, vmap.gradients_rule(fake_quant_backward))


@op_function
class FakeQuantize(torch.autograd.Function):
    """Saves x, scale and zero point; the backward recomputes the rest in one pass over x and grad_y."""

    @staticmethod
    def compute(*args: Any) -> Tensor:
        """args: x, the seven of a Grid, then grad_factor."""
        return fake_quant(*args[:-1])

    @staticmethod
    def save(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, *options: Any) -> None:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.options = options

    @staticmethod
    @once
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it as *Any
        x, scale, zero_point = ctx.saved_tensors
        _, needs_scale, needs_zero_point = ctx.needs_input_grad[:3]
        grad_x, grad_scale, grad_zero_point = fake_quant_backward(grad_y, x, scale, zero_point, *ctx.options, needs_scale, needs_zero_point)
        return (
            grad_x if ctx.needs_input_grad[0] else None,
            grad_scale if needs_scale else None,
            grad_zero_point.to(zero_point.dtype).reshape(zero_point.shape) if needs_zero_point else None,
            *[None] * 6,
        )
