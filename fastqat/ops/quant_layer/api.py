"""Linear and convolution layers on fake-quantized operands, for the modules of `fastqat.nn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._autograd import apply, tracked
from ..fake_quant.api import check_range
from ..fake_quant.reference import SEMANTICS
from . import norms, op
from .norms import Wanted


class QuantArgs(NamedTuple):
    """What one fake quantizer needs (see `fastqat.fake_quantize` for the maths).

    Attributes:
        scale: fp32, one element, ``[channels]``, or x's shape with the groups in place of the axis.
        zero_point: like `scale`, or None.
        qmin, qmax: the integer range.
        axis: channel axis, None for per tensor.
        group_size: length of the groups along `axis`, None for per channel.
        semantics: ``"div"`` or ``"reciprocal"``.
        grad_factor: multiplies the gradients of scale and zero point.
        per_scale: divide `grad_factor` by the square root of the number of elements that share one scale, batch included.
    """

    scale: Tensor
    zero_point: Tensor | None
    qmin: int
    qmax: int
    axis: int | None = None
    group_size: int | None = None
    semantics: str = "div"
    grad_factor: float = 1.0
    per_scale: bool = False


def encode(x: Tensor, quant: QuantArgs | None) -> tuple[Tensor | None, Tensor | None, list[int], float, bool]:
    """`quant` as the operators take it: scale, zero point, code, gradient factor, per_scale. Raises as `quant_linear`."""
    if quant is None:
        return None, None, [], 1.0, False
    axis = check_range(x, quant.scale, quant.zero_point, quant.qmin, quant.qmax, quant.axis, quant.group_size, quant.semantics)
    code = [quant.qmin, quant.qmax, -1 if axis is None else axis, quant.group_size or 0, SEMANTICS.index(quant.semantics)]
    return quant.scale, quant.zero_point, code, quant.grad_factor, quant.per_scale


def _apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: list[int],
    x_quant: QuantArgs | None,
    w_quant: QuantArgs | None,
    wanted: Wanted | None,
) -> Tensor:
    x_scale, x_zero_point, x_code, x_factor, x_per_scale = encode(x, x_quant)
    w_scale, w_zero_point, w_code, w_factor, w_per_scale = encode(weight, w_quant)
    tensors = (x, weight, bias, x_scale, x_zero_point, w_scale, w_zero_point)
    options = (x_code, w_code, conv, [x_factor, w_factor], [x_per_scale, w_per_scale])
    if wanted is not None and torch.is_grad_enabled():
        return apply(norms.QuantLayerNorms, *tensors, *options, wanted.anchor, wanted)
    if tracked(*tensors):
        return apply(op.QuantLayer, *tensors, *options)
    return op.quant_layer(*tensors, x_code, w_code, conv)


def quant_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    x_quant: QuantArgs | None = None,
    w_quant: QuantArgs | None = None,
    wanted: Wanted | None = None,
) -> Tensor:
    r""":math:`y = \hat x\, \hat w^\top + b` with fake-quantized operands; saves x and weight only and recomputes the rest.

    Args:
        x: ``[..., I]``. weight: ``[O, I]``; may be fp32 while x is bf16 (autocast): the product runs in the dtype of x.
        bias: ``[O]`` or None.
        x_quant, w_quant: quantizers, None leaves the operand as it is.
        wanted: per-sample gradients that the backward pass delivers; dimension 0 of x is then the batch.

    Returns:
        ``[..., O]`` in the dtype of x, differentiable in x, weight, bias, scales and zero points.

    Raises:
        TypeError, ValueError: as `fastqat.fake_quantize`.

    Example:
        >>> import torch
        >>> w = QuantArgs(torch.tensor(0.5), None, -2, 1)
        >>> quant_linear(torch.ones(1, 2), torch.tensor([[0.3, 9.0]]), w_quant=w)
        tensor([[1.]])
    """
    return _apply(x, weight, bias, [], x_quant, w_quant, wanted)


def quant_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    x_quant: QuantArgs | None = None,
    w_quant: QuantArgs | None = None,
    wanted: Wanted | None = None,
) -> Tensor:
    r"""Convolution (1-D, 2-D, 3-D) of fake-quantized operands; saves x and weight only and recomputes the rest.

    Args:
        x: ``[N, C, ...]`` or ``[C, ...]``. weight: ``[O, C / groups, ...]``; may be fp32 while x is bf16.
        bias: ``[O]`` or None.
        stride, padding, dilation: one integer per spatial dimension. The padding zeros enter after quantization.
        x_quant, w_quant: quantizers, None leaves the operand as it is.
        wanted: per-sample gradients that the backward pass delivers.

    Returns:
        ``[N, O, ...]`` in the dtype of x.

    Raises:
        TypeError, ValueError: as `fastqat.fake_quantize`.

    Example:
        >>> import torch
        >>> w = QuantArgs(torch.tensor(1.0), None, -2, 1)
        >>> quant_conv(torch.ones(1, 1, 3), torch.full((1, 1, 2), 0.8), stride=[1], padding=[0], dilation=[1], w_quant=w)
        tensor([[[2., 2.]]])
    """
    conv = [groups, *stride, *padding, *dilation]
    if x.dim() == weight.dim():
        return _apply(x, weight, bias, conv, x_quant, w_quant, wanted)
    if x_quant is not None and x_quant.axis is not None:
        x_quant = x_quant._replace(axis=x_quant.axis + 1 if x_quant.axis >= 0 else x_quant.axis)
    return _apply(x.unsqueeze(0), weight, bias, conv, x_quant, w_quant, wanted).squeeze(0)
