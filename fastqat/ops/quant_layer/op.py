"""The operator pair ``fastqat::quant_layer`` / ``quant_layer_backward``: convolution or linear layer on fake-quantized operands.

Forward:   y = layer(x_hat, w_hat, bias)          x_hat, w_hat = fake_quant(x), fake_quant(w)
Backward:  x_hat and w_hat are computed again from x and w, the only large tensors that are saved. The pair is opaque, so a compiler
           cannot merge the two computations and keep x_hat alive between them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _backend
from .._autograd import once, op_function
from .._library import define_op, without_autocast
from ..fake_quant.op import OP as FAKE_QUANT
from ..fake_quant.reference import SEMANTICS, Grid


class Needs(NamedTuple):
    """Which tensors of the operator a gradient is wanted of, in its order."""

    x: bool = False
    weight: bool = False
    bias: bool = False
    x_scale: bool = False
    x_zero_point: bool = False
    w_scale: bool = False
    w_zero_point: bool = False

    @property
    def weight_side(self) -> bool:
        """Whether that takes the product of x_hat and grad_y."""
        return self.weight or self.bias or self.w_scale or self.w_zero_point

    @property
    def input_side(self) -> bool:
        """Whether that takes the gradient of x_hat."""
        return self.x or self.x_scale or self.x_zero_point


class Operand(NamedTuple):
    """How one operand is quantized; `code` packs (qmin, qmax, axis or −1, group size or 0, index into SEMANTICS), empty for none."""

    scale: Tensor | None
    zero_point: Tensor | None
    code: list[int]

    def grid(self) -> Grid:
        assert self.scale is not None
        qmin, qmax, axis, group_size, semantics = self.code
        return Grid(self.scale, self.zero_point, qmin, qmax, None if axis < 0 else axis, group_size or None, SEMANTICS[semantics])

    def apply(self, x: Tensor) -> Tensor:
        """x_hat, or x itself where nothing is quantized."""
        return _backend.pick(FAKE_QUANT, x).forward(x, self.grid()) if self.code else x

    def factor(self, x: Tensor, factor: float, per_scale: bool) -> float:
        """The gradient factor of scale and zero point, divided by √(elements of `x` that share a scale) if `per_scale`."""
        assert self.scale is not None
        return factor / math.sqrt(max(x.numel() // self.scale.numel(), 1)) if per_scale else factor

    def backward(self, grad: Tensor, x: Tensor, factor: float, per_scale: bool, needs: tuple[bool, bool]) -> tuple[Tensor, ...]:
        """Gradients of x, scale and zero point from the gradient of x_hat, which is overwritten."""
        if not self.code:
            return grad, nothing(grad), nothing(grad)
        grid = self.grid()
        factor = self.factor(x, factor, per_scale)
        grad_x, *rest = _backend.pick(FAKE_QUANT, x).backward(grad, x, grid, factor, *needs, in_place=True)
        return grad_x, *(nothing(x) if g is None else g for g in rest)


def nothing(x: Tensor) -> Tensor:
    """What stands for a gradient that is not computed."""
    return x.new_empty(0)


def conv_options(conv: list[int]) -> tuple[Any, ...]:
    """stride, padding, dilation, transposed, output_padding, groups of aten's convolution from [groups, *stride, *padding, *dilation]."""
    n = len(conv) // 3
    return conv[1 : 1 + n], conv[1 + n : 1 + 2 * n], conv[1 + 2 * n :], False, [0] * n, conv[0]


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, conv: list[int]) -> Tensor:
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if not conv:
        return torch.ops.aten.linear(x, weight, bias)
    return torch.ops.aten.convolution(x, weight, bias, *conv_options(conv))


def _weight_gradients(grad_y: Tensor, x_hat: Tensor, weight: Tensor, conv: list[int], needs_bias: bool) -> tuple[Tensor, Tensor]:
    """Gradients of w_hat and bias; of `weight` only the shape is read."""
    if conv:
        options = conv_options(conv)
        shape = weight if weight.dtype == x_hat.dtype else torch.empty_like(weight, dtype=x_hat.dtype)
        mask = [False, True, needs_bias]
        _, grad_w, grad_bias = torch.ops.aten.convolution_backward(grad_y, x_hat, shape, [weight.shape[0]], *options, mask)
        return grad_w, grad_bias if needs_bias else nothing(weight)
    rows = grad_y.reshape(-1, grad_y.shape[-1])
    grad_w = rows.t() @ x_hat.reshape(-1, x_hat.shape[-1])
    return grad_w, rows.sum(0) if needs_bias else nothing(weight)


def weight_side(
    grad_y: Tensor, x_hat: Tensor, weight: Tensor, quant: Operand, conv: list[int], factor: float, per_scale: bool, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of weight and bias, and of the weight's scale and zero point."""
    grad_w, grad_bias = _weight_gradients(grad_y, x_hat, weight, conv, needs.bias)
    sums = needs.w_scale, needs.w_zero_point
    grad_w, grad_scale, grad_zero_point = quant.backward(grad_w.to(weight.dtype), weight, factor, per_scale, sums)
    return grad_w, grad_bias, grad_scale, grad_zero_point


def input_gradient(grad_y: Tensor, x: Tensor, w_hat: Tensor, conv: list[int]) -> Tensor:
    """Gradient of x_hat; of `x` only shape and layout are read."""
    w_hat = w_hat.to(grad_y.dtype)
    if conv:
        return torch.ops.aten.convolution_backward(grad_y, x, w_hat, None, *conv_options(conv), [True, False, False])[0]
    return grad_y @ w_hat


def as_given(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """`implementation` in the dtypes of its arguments: inside an autocast region torch would cast the operands of the product."""
    guarded = without_autocast(implementation)

    @functools.wraps(implementation)
    def run(x: Tensor, *args: Any) -> Any:
        device = x.device.type
        as_cast = torch.amp.is_autocast_available(device) and x.dtype == torch.get_autocast_dtype(device)
        return (implementation if as_cast else guarded)(x, *args)

    return run


@as_given
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_scale: Tensor | None,
    x_zero_point: Tensor | None,
    w_scale: Tensor | None,
    w_zero_point: Tensor | None,
    x_code: list[int],
    w_code: list[int],
    conv: list[int],
) -> Tensor:
    x_hat = Operand(x_scale, x_zero_point, x_code).apply(x)
    return _layer(x_hat, Operand(w_scale, w_zero_point, w_code).apply(weight), bias, conv)


@as_given
def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return _layer(x, weight, bias, rest[-1])


@as_given
def _backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor | None,
    x_zero_point: Tensor | None,
    w_scale: Tensor | None,
    w_zero_point: Tensor | None,
    x_code: list[int],
    w_code: list[int],
    conv: list[int],
    factors: list[float],
    per_scale: list[bool],
    needs: list[bool],
) -> tuple[Tensor, ...]:
    x_quant, w_quant, wanted = Operand(x_scale, x_zero_point, x_code), Operand(w_scale, w_zero_point, w_code), Needs(*needs)
    grads = [nothing(x) for _ in range(7)]
    if wanted.weight_side:  # first, so that x_hat is gone before the gradient of x is allocated
        x_hat = x_quant.apply(x)
        grads[1], grads[2], *grads[5:] = weight_side(grad_y, x_hat, weight, w_quant, conv, factors[1], per_scale[1], wanted)
        del x_hat
    if wanted.input_side:
        grad = input_gradient(grad_y, x, w_quant.apply(weight), conv)
        grads[0], grads[3], grads[4] = x_quant.backward(grad, x, factors[0], per_scale[0], (wanted.x_scale, wanted.x_zero_point))
    return tuple(grads)


def backward_fake(grad_y: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """What the backward pass allocates."""
    x_scale, _, w_scale, _, *_, needs = rest
    shapes = (x, weight, weight.new_empty(weight.shape[0], dtype=x.dtype), x_scale, x_scale, w_scale, w_scale)
    computed = (Needs(*needs).input_side, Needs(*needs).weight_side, *needs[2:])
    return tuple(
        torch.empty_like(shape) if done and shape is not None else nothing(x) for shape, done in zip(shapes, computed, strict=True)
    )


OPERANDS = "Tensor? x_scale, Tensor? x_zero_point, Tensor? w_scale, Tensor? w_zero_point, int[] x_code, int[] w_code, int[] conv"
quant_layer = define_op(f"quant_layer(Tensor x, Tensor weight, Tensor? bias, {OPERANDS}) -> Tensor", _forward, _forward_fake)
quant_layer_backward = define_op(
    f"quant_layer_backward(Tensor grad_y, Tensor x, Tensor weight, {OPERANDS}, float[] factors, bool[] per_scale, bool[] needs) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    backward_fake,
)


@op_function
class QuantLayer(torch.autograd.Function):
    """Saves x, weight and the quantizers' parameters."""

    @staticmethod
    def compute(*args: Any) -> Tensor:
        """args: the seven tensors of the operator, x_code, w_code, conv, factors, per_scale."""
        return quant_layer(*args[:-2])

    @staticmethod
    def save(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> None:
        ctx.save_for_backward(x, weight, *args[:4])
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.options = args[4:]

    @staticmethod
    @once
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it as *Any
        x, weight, *quantizers = ctx.saved_tensors
        found = quant_layer_backward(grad_y, x, weight, *quantizers, *ctx.options, list(ctx.needs_input_grad[:7]))
        return returned(ctx, found, quantizers)


def returned(ctx: Any, found: Sequence[Tensor], quantizers: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The seven gradients found, as autograd takes them: in the dtype and shape of what they belong to, None for those not needed.

    `quantizers`: the last four of ``ctx.saved_tensors``, which a checkpoint lets unpack once.
    """
    _, x_zero_point, _, w_zero_point = quantizers
    grads, needs = list(found), ctx.needs_input_grad[:7]
    if needs[2]:
        grads[2] = grads[2].to(ctx.bias_dtype)
    for i, zero_point in ((4, x_zero_point), (6, w_zero_point)):
        if needs[i]:
            grads[i] = grads[i].to(zero_point.dtype).reshape(zero_point.shape)
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), *[None] * 5
