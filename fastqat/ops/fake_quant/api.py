"""Public fake quantization: validation and documentation."""

from __future__ import annotations

import torch
from torch import Tensor

from .._autograd import apply, tracked
from . import op
from .reference import SEMANTICS

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _checked_axis(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None, group_size: int | None) -> int | None:
    """The axis, counted from the front; scale and zero point have the shape it asks for."""
    if axis is not None and (isinstance(axis, bool) or not isinstance(axis, (int, torch.SymInt))):
        raise TypeError(f"axis is {axis!r}; accepted: an integer, or None for one scale")
    if axis is not None and not -x.dim() <= axis < x.dim():
        raise ValueError(
            f"axis {axis} is out of range for a tensor of {x.dim()} dimensions; accepted: {-x.dim()} to {x.dim() - 1}, or None"
        )
    axis = axis if axis is None or axis >= 0 else axis + x.dim()
    if group_size is not None:
        _check_groups(x, scale, zero_point, axis, group_size)
        return axis
    length = 1 if axis is None else x.shape[axis]
    for name, values in (("scale", scale), ("zero_point", zero_point)):
        if values is not None and (values.numel() != length or (axis is not None and values.dim() != 1)):
            wanted = "one element (axis=None)" if axis is None else f"shape [{length}], the length of x along axis {axis}"
            raise ValueError(f"{name} has shape {list(values.shape)}; accepted: {wanted}")
    return axis


def _check_groups(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None, group_size: int) -> None:
    if axis is None:
        raise ValueError(f"group_size {group_size} without an axis; say along which axis the groups lie, as axis=1")
    if isinstance(group_size, bool) or not isinstance(group_size, (int, torch.SymInt)):
        raise TypeError(f"group_size is {group_size!r}; accepted: an integer, or None")
    if group_size < 1 or x.shape[axis] % group_size:
        raise ValueError(f"group_size {group_size} for an axis of length {x.shape[axis]}; accepted: a divisor of the length")
    wanted = [*x.shape[:axis], x.shape[axis] // group_size, *x.shape[axis + 1 :]]
    for name, values in (("scale", scale), ("zero_point", zero_point)):
        if values is not None and list(values.shape) != wanted:
            raise ValueError(
                f"{name} has shape {list(values.shape)}; accepted: {wanted}, the shape of x with the groups in place of axis {axis}"
            )


def check_range(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    axis: int | None,
    group_size: int | None,
    semantics: str,
) -> int | None:
    """Raise for what no backend accepts; return the axis counted from the front."""
    for name, value in (("x", x), ("scale", scale), ("zero_point", zero_point)):
        if not isinstance(value, Tensor) and not (name == "zero_point" and value is None):
            raise TypeError(f"{name} is {type(value).__name__}; accepted: a tensor, such as torch.tensor(0.1)")
    if not (isinstance(qmin, int) and isinstance(qmax, int)):
        raise TypeError(f"qmin, qmax are {qmin!r}, {qmax!r}; accepted: integers")
    if x.layout != torch.strided:
        raise TypeError(f"x is a {x.layout} tensor; accepted: a dense one, such as x.to_dense()")
    if zero_point is not None and (zero_point.is_complex() or zero_point.dtype == torch.bool):
        raise TypeError(f"zero_point is {zero_point.dtype}; accepted: an integer or floating dtype")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x is {x.dtype}; accepted: float32, bfloat16, float16, float64")
    if scale.dtype != torch.float32 and not scale.dtype == x.dtype == torch.float64:
        raise TypeError(f"scale is {scale.dtype}; accepted: float32 (or float64 with a float64 x): use scale.float()")
    for name, values in (("scale", scale), ("zero_point", zero_point)):
        if values is not None and values.device != x.device:
            raise ValueError(f"{name} is on {values.device} and x on {x.device}; move both to one device")
    if qmin > qmax or qmin < -(2**15) or qmax > 2**16 - 1 or qmax - qmin > 2**16 - 1:
        raise ValueError(f"integer range [{qmin}, {qmax}]; accepted: qmin <= qmax, at most 16 bits, from -32768 to 65535")
    if semantics not in SEMANTICS:
        raise ValueError(f"semantics {semantics!r}; accepted: 'div' (LSQ, ONNX) or 'reciprocal' (torch)")
    return _checked_axis(x, scale, zero_point, axis, group_size)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group_size: int | None = None,
    semantics: str = "div",
    grad_factor: float = 1.0,
) -> Tensor:
    r"""Round `x` to the integer grid of a quantizer and scale it back, with gradients for x, scale and zero point.

    .. math::  \hat x = (\mathrm{clamp}(\mathrm{rne}(v) + z,\; q_{min}, q_{max}) - z)\, s, \qquad v = x / s

    where rne rounds half to even. Backward (LSQ; summed over the elements that share a scale, times `grad_factor`):

    ==============  =========================  ==================  ===================
    gradient of     v below qmin − z           inside              v above qmax − z
    ==============  =========================  ==================  ===================
    x               0                          grad_y              0
    scale           grad_y · (qmin − z)        grad_y · (rne v−v)  grad_y · (qmax − z)
    zero_point      −grad_y · s                0                   −grad_y · s
    ==============  =========================  ==================  ===================

    ``semantics="reciprocal"`` computes v = x · fp32(1/s), tests the range on the rounded value and uses (x_hat − x)/s as slope:
    the values of ``torch.fake_quantize_per_tensor_affine``.

    Computes in fp32 whatever the storage type, with one cast at the end; every backend, thread count and instruction set gives the
    same bits of x_hat and grad_x. NaN stays NaN (its grad_x is 0, the other gradients become NaN); ±inf saturates; −0 is never
    returned. Dense layouts (contiguous, channels-last, transposed) are read in place order; others cost one copy. In eager mode
    torch.func's vmap, grad and jacrev take it; a derivative of its gradients, or one in forward mode, is refused.

    Args:
        x: any shape; float32, bfloat16, float16 (float64 on the reference backend).
        scale: step size s > 0, float32; one element, ``[x.shape[axis]]``, or with `group_size` the shape of x with the number of groups in
            place of the axis. Not checked for its sign (that would wait for the GPU).
        zero_point: z, shaped like `scale`, float or integer dtype; float values are rounded half to even, with a straight-through
            gradient. None means 0. Values beyond ±2²¹ are rounded differently by the Triton kernels.
        qmin, qmax: the integer range, at most 16 bits.
        axis: the channel axis, or None for per tensor.
        group_size: cuts the axis into groups of that many neighbours with a scale each; divides the length of the axis.
        semantics: ``"div"`` (LSQ paper, brevitas, ONNX QuantizeLinear) or ``"reciprocal"`` (torch, torchao).
        grad_factor: g, multiplies the gradients of scale and zero point (LSQ: 1/√(N · qmax)).

    Returns:
        x_hat with the shape, dtype and layout of x.

    Raises:
        TypeError: x or scale has another dtype. ValueError: range, axis, length, device or semantics is not accepted.
        RuntimeError: differentiated twice, or the backend asked for by name cannot run.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020, eq. 1–3; Bhalgat et al., LSQ+, 2020 (zero point).

    Example:
        >>> x = torch.tensor([-1.3, 0.26, 0.74, 9.0], requires_grad=True)
        >>> s = torch.tensor(0.5, requires_grad=True)
        >>> y = fake_quantize(x, s, qmin=-8, qmax=7)
        >>> y
        tensor([-1.5000,  0.5000,  0.5000,  3.5000], grad_fn=<FakeQuantizeBackward>)
        >>> y.sum().backward()
        >>> x.grad, round(s.grad.item(), 4)
        (tensor([1., 1., 1., 0.]), 6.6)
        >>> w, step = torch.tensor([[0.3, 0.6, 3.0, 6.0]]), torch.tensor([[0.25, 2.0]])
        >>> fake_quantize(w, step, qmin=-2, qmax=1, axis=1, group_size=2)
        tensor([[0.2500, 0.2500, 2.0000, 2.0000]])
    """
    if isinstance(grad_factor, bool) or not isinstance(grad_factor, (int, float, torch.SymFloat)):
        raise TypeError(f"grad_factor is {grad_factor!r}; accepted: a number")
    axis = check_range(x, scale, zero_point, qmin, qmax, axis, group_size, semantics)
    if tracked(x, scale, zero_point):
        return apply(op.FakeQuantize, x, scale, zero_point, qmin, qmax, axis, group_size, semantics, grad_factor)
    return op.fake_quant(x, scale, zero_point, qmin, qmax, axis, group_size, semantics)


def quantize_codes(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group_size: int | None = None,
    semantics: str = "div",
) -> Tensor:
    r"""The integers behind `fake_quantize`: :math:`c = \mathrm{clamp}(\mathrm{rne}(x / s) + z, q_{min}, q_{max})`.

    ``(c − z) · s`` is exactly what `fake_quantize` returns for float32 x. With ``semantics="div"`` the codes equal those of ONNX
    QuantizeLinear, ties included. NaN gives qmin.

    Args:
        x, scale, zero_point, qmin, qmax, axis, group_size, semantics: as in `fake_quantize`.

    Returns:
        Integers with the shape and layout of x, in the smallest of int8, uint8, int16, int32 that holds the range. No gradient.

    Raises:
        TypeError, ValueError: as `fake_quantize`.

    Example:
        >>> quantize_codes(torch.tensor([-1.3, 0.25, 0.75, 9.0]), torch.tensor(0.5), qmin=-8, qmax=7)
        tensor([-3,  0,  2,  7], dtype=torch.int8)
    """
    axis = check_range(x, scale, zero_point, qmin, qmax, axis, group_size, semantics)
    return op.quantize_codes(
        x.detach(), scale.detach(), None if zero_point is None else zero_point.detach(), qmin, qmax, axis, group_size, semantics
    )
