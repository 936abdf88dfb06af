"""Public operators `linear_grad_sq_norm` and `conv_grad_sq_norm`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._errors import InputError
from .._checks import check_tensors
from . import op
from .geometry import LINEAR, Geometry, lift, positions_last, triple

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def linear_grad_sq_norm(x: Tensor, grad_y: Tensor, *, bias: bool = True) -> Tensor:
    r"""Squared norm of each sample's gradient of a linear layer's weight and bias, without forming the gradients.

    .. math:: \Big\lVert \sum_t g_{nt} x_{nt}^\top \Big\rVert_F^2 + \Big\lVert \sum_t g_{nt} \Big\rVert^2

    The cheaper by count of the direct form, 2·T·I·O operations, and the Gram form :math:`\sum_{tt'} (g_t \cdot g_{t'})(x_t \cdot x_{t'})`,
    T²·(I + O), is taken; with one position per sample it is :math:`\lVert g \rVert^2 (1 + \lVert x \rVert^2)`.

    Args:
        x: ``[N, ..., I]``, input of the layer: fp32, bf16, fp16, or fp64 (reference backend).
        grad_y: ``[N, ..., O]``, gradient of the loss with respect to its output, same dtype. The result is that of the loss as it was
            differentiated: with a mean over the batch, multiply it by N² for the samples' own losses.
        bias: add the part of the bias.

    Returns:
        ``[N]``, ≥ 0, in fp32 (fp64 for fp64), which it also computes in; deterministic.

    Raises:
        InputError (a ValueError): an argument is no tensor, or shapes, dtypes or devices do not fit together.

    Source: I. Goodfellow, Efficient per-example gradient computations, 2015 (arXiv 1510.01799) for one position.

    Example:
        >>> import torch
        >>> x, grad_y = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])
        >>> linear_grad_sq_norm(x, grad_y)
        tensor([104.])
    """
    _check(x, grad_y, least=2)
    if x.dim() != grad_y.dim() or x.shape[:-1] != grad_y.shape[:-1]:
        raise InputError(f"x [N, ..., I] and grad_y [N, ..., O] must agree in all but the last dimension; got {_shapes(x, grad_y)}")
    return op.grad_sq_norm(positions_last(x), positions_last(grad_y), None, None, LINEAR.encode(), bias, "auto")[0]


def conv_grad_sq_norm(
    x: Tensor,
    grad_y: Tensor,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
) -> Tensor:
    r"""Squared norm of each sample's gradient of a convolution's weight and bias, without unfolding the input.

    With :math:`u_t` what the kernel sees at output position t:

    .. math:: \Big\lVert \sum_t g_{nt} u_{nt}^\top \Big\rVert_F^2 + \Big\lVert \sum_t g_{nt} \Big\rVert^2

    One of three forms is taken, by count of operations (see `fastqat.ops.grad_norm.forms`): the gradient a tile at a time; the Gram
    matrices of positions; the latter as a sum of shifted Gram matrices of pixels.

    Args:
        x: ``[N, C, L]``, ``[N, C, H, W]`` or ``[N, C, D, H, W]``, any memory layout: fp32, bf16, fp16, or fp64 (reference backend).
        grad_y: ``[N, O, ...]``, gradient of the loss with respect to the output, same dtype; scaled as the loss was.
        kernel_size, stride, padding, dilation: an integer, or one per spatial dimension; padding also ``"valid"`` or ``"same"``.
        groups: as in `torch.nn.Conv2d`; C for a depthwise convolution.
        bias: add the part of the bias.

    Returns:
        ``[N]``, ≥ 0, in fp32 (fp64 for fp64), which it also computes in; deterministic.

    Raises:
        InputError (a ValueError): an argument is no tensor, or shapes, dtypes or devices do not fit together.

    Source: G. Rochette, A. Manoel, E. Tramel, Efficient per-example gradient computations in convolutional neural networks, 2019
        (arXiv 1912.06015), for the direct form.

    Example:
        >>> import torch
        >>> x, grad_y = torch.ones(2, 3, 8, 8), torch.ones(2, 4, 8, 8)
        >>> conv_grad_sq_norm(x, grad_y, 1, bias=False)
        tensor([49152., 49152.])
    """
    _check(x, grad_y, least=3, most=5)
    x, geometry = conv_operand(x, kernel_size, stride, padding, dilation, groups)
    _check_conv(x, grad_y, geometry)
    return op.grad_sq_norm(lift(x), lift(grad_y), None, None, geometry.encode(), bias, "auto")[0]


def conv_operand(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
) -> tuple[Tensor, Geometry]:
    """x, padded as far as the operator cannot, and what is left to the operator; arguments as `conv_grad_sq_norm` has them."""
    spatial = x.dim() - 2
    kernel, dilations = _per_dim("kernel_size", kernel_size, spatial, 1), _per_dim("dilation", dilation, spatial, 1)
    strides = _per_dim("stride", stride, spatial, 1)
    x, padding = _padded(x, padding, kernel, dilations, strides)
    pads = _per_dim("padding", padding, spatial, 0)
    return x, Geometry(groups, triple(kernel, 1), triple(strides, 1), triple(pads, 0), triple(dilations, 1))


def _padded(
    x: Tensor, padding: int | Sequence[int] | str, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, int | Sequence[int]]:
    """x and its padding in numbers; what ``"same"`` adds on one side only is added to x."""
    if not isinstance(padding, str):
        return x, padding
    if padding == "valid":
        return x, 0
    if padding != "same":
        raise InputError(f"padding is {padding!r}; accepted: 'valid', 'same', an integer, or one per spatial dimension")
    if any(s != 1 for s in stride):
        raise InputError(f"padding='same' needs stride 1; got stride {tuple(stride)}")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total):
        x = F.pad(x, [side for t in reversed(total) for side in (0, t % 2)])
    return x, [t // 2 for t in total]


def _per_dim(name: str, value: int | Sequence[int], spatial: int, least: int) -> tuple[int, ...]:
    values = (value,) * spatial if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(values) != spatial or not all(isinstance(v, int) and v >= least for v in values):
        raise InputError(f"{name} is {value!r}; accepted: an integer ≥ {least}, or {spatial} of them for {spatial} spatial dimensions")
    return values


def _check(x: Tensor, grad_y: Tensor, least: int, most: int | None = None) -> None:
    check_tensors(x=x, grad_y=grad_y)
    for name, tensor in (("x", x), ("grad_y", grad_y)):
        if tensor.dtype not in DTYPES:
            raise InputError(f"{name} is {tensor.dtype}; accepted: {', '.join(map(str, DTYPES))}")
        if tensor.dim() < least or (most is not None and tensor.dim() > most):
            accepted = f"{least} to {most}" if most else f"at least {least}"
            raise InputError(f"{name} is {list(tensor.shape)}; accepted: {accepted} dimensions, the first is the batch")
    if x.dtype != grad_y.dtype or x.device != grad_y.device:
        raise InputError(
            f"x is {x.dtype} on {x.device}, grad_y {grad_y.dtype} on {grad_y.device}; convert one: grad_y.to(x.device, x.dtype)"
        )


def _check_conv(x: Tensor, grad_y: Tensor, geometry: Geometry) -> None:
    channels, outputs, groups = x.shape[1], grad_y.shape[1], geometry.groups
    if not isinstance(groups, int) or groups < 1 or channels % groups or outputs % groups:
        raise InputError(f"groups is {groups!r}; it must divide the {channels} channels of x and the {outputs} of grad_y")
    size = geometry.output_size(lift(x).shape[2:])
    if x.dim() != grad_y.dim() or x.shape[0] != grad_y.shape[0] or tuple(lift(grad_y).shape[2:]) != size:
        wanted = [x.shape[0], outputs, *size[5 - x.dim() :]]
        raise InputError(f"grad_y must be {wanted} for this x and this kernel; got {_shapes(x, grad_y)}")


def _shapes(x: Tensor, grad_y: Tensor) -> str:
    return f"x {list(x.shape)}, grad_y {list(grad_y.shape)}"
