"""Public fake quantization of many tensors at once: validation and documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._autograd import tracked
from ..fake_quant.api import check_range, fake_quantize
from . import op

T = TypeVar("T")


def _each(name: str, value: T | Sequence[T], n: int) -> list[T]:
    """One value per tensor, from one for all or a list of them."""
    if not isinstance(value, (list, tuple)):
        return [value] * n  # type: ignore[list-item]  # not a sequence: one value for all
    if len(value) != n:
        raise ValueError(f"{name} has {len(value)} values for {n} tensors; accepted: one value, or a list with one per tensor")
    return list(value)


def _factor(value: Any) -> float:
    if value is None:
        return 1.0
    try:
        if not isinstance(value, (Tensor, str)):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"grad_factors has a {type(value).__name__}; accepted: None (1.0), a Python number, or a list with one per tensor")


def _check_lists(xs: Any, scales: Any, zero_points: Any) -> None:
    for name, tensors in (("xs", xs), ("scales", scales), ("zero_points", zero_points)):
        if not isinstance(tensors, (list, tuple)) and not (name == "zero_points" and tensors is None):
            raise TypeError(f"{name} is {type(tensors).__name__}; accepted: a list of tensors; for one tensor use fake_quantize")
        if tensors is not None and len(tensors) != len(xs):
            raise ValueError(f"{name} has {len(tensors)} entries for {len(xs)} tensors; accepted: one per tensor")


def _packed(i: int, x: Tensor, scale: Tensor, zero_point: Tensor | None, *grid: Any) -> list[int]:
    """The grid of tensor i as the operators take it; what is wrong with it is said with its number."""
    try:
        axis = check_range(x, scale, zero_point, *grid)
    except (TypeError, ValueError) as error:
        raise type(error)(f"tensor {i}: {error}") from None
    qmin, qmax, _, group_size, semantics = grid
    return op.pack((qmin, qmax, axis, group_size, semantics))


def fake_quantize_all(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    zero_points: Sequence[Tensor | None] | None = None,
    *,
    qmin: int | Sequence[int],
    qmax: int | Sequence[int],
    axis: int | Sequence[int | None] | None = None,
    group_size: int | Sequence[int | None] | None = None,
    semantics: str | Sequence[str] = "div",
    grad_factors: float | Sequence[float | None] | None = None,
) -> list[Tensor]:
    r"""`fake_quantize` of many tensors, such as all weights of a network, in one call: one launch on a GPU, one parallel region on a CPU.

    .. math::  \hat x_k = (\mathrm{clamp}(\mathrm{rne}(x_k / s_k) + z_k,\; q_{min,k}, q_{max,k}) - z_k)\, s_k

    with the gradients, the bits and the edge cases of `fake_quantize`, tensor by tensor. The results are independent tensors; the
    backward pass runs once, when the gradients of all results that were used have arrived, and leaves out those that were not.

    Args:
        xs: tensors of any shapes, dense in any layout (others cost one copy), on one device; dtypes may differ (a GPU takes one launch for
            each). An empty list gives an empty list.
        scales: one per tensor, shaped as `fake_quantize` wants it.
        zero_points: None, or a list with a tensor or None per tensor.
        qmin, qmax, axis, group_size, semantics: as in `fake_quantize`; one value for all tensors, or a list with one per tensor.
        grad_factors: multiply the gradients of scale and zero point; one number, or one per tensor; None is 1.

    Returns:
        One x_hat per tensor, with the shape, dtype and layout of its x.

    Raises:
        TypeError, ValueError: as `fake_quantize`, the message tells the number of the tensor; lists of other lengths; several devices.
        RuntimeError: differentiated twice, or the backend asked for by name cannot run.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020, eq. 1–3.

    Example:
        >>> xs = [torch.tensor([-1.3, 0.26, 9.0]), torch.tensor([[0.3], [6.0]])]
        >>> fake_quantize_all(xs, [torch.tensor(0.5), torch.tensor([0.25, 2.0])], qmin=-8, qmax=7, axis=[None, 0])
        [tensor([-1.5000,  0.5000,  3.5000]), tensor([[0.2500],
                [6.0000]])]
    """
    _check_lists(xs, scales, zero_points)
    n = len(xs)
    zero_points = [None] * n if zero_points is None else zero_points
    grid: dict[str, Any] = {"qmin": qmin, "qmax": qmax, "axis": axis, "group_size": group_size, "semantics": semantics}
    values = [_each(name, value, n) for name, value in grid.items()]
    factors = [_factor(factor) for factor in _each("grad_factors", grad_factors, n)]
    if n == 0:
        return []
    tensors = list(zip(xs, scales, zero_points, strict=True))
    if torch._C._are_functorch_transforms_active():  # the operators of one tensor have the rules of torch.func's transforms
        options = [dict(zip((*grid, "grad_factor"), each, strict=True)) for each in zip(*values, factors, strict=True)]
        return [fake_quantize(*three, **each) for three, each in zip(tensors, options, strict=True)]
    codes = [number for i in range(n) for number in _packed(i, *tensors[i], *(value[i] for value in values))]
    other = next((x for x in xs if x.device != xs[0].device), None)
    if other is not None:
        raise ValueError(f"xs are on {xs[0].device} and {other.device}; accepted: one device for all: call it once per device")
    if tracked(*xs, *scales, *zero_points):
        return list(op.FakeQuantizeAll.apply(codes, factors, *xs, *scales, *zero_points))
    return op.fake_quant_all(list(xs), list(scales), list(zero_points), codes)
