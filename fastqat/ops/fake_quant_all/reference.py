"""Fake quantization of many tensors: one call of the reference of `fake_quantize` per tensor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..fake_quant import reference
from ..fake_quant.reference import Grid

Gradients = tuple[Tensor, Tensor | None, Tensor | None]
"""Of x, scale and zero point; None for what is not wanted."""

Needs = Sequence[tuple[bool, bool]]
"""Per tensor: is the gradient of the scale wanted, is that of the zero point."""


def forward(xs: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
    """x_hat of every x, each in the dtype and layout of its x."""
    return [reference.forward(x, grid) for x, grid in zip(xs, grids, strict=True)]


def backward(
    grad_ys: Sequence[Tensor], xs: Sequence[Tensor], grids: Sequence[Grid], grad_factors: Sequence[float], needs: Needs
) -> list[Gradients]:
    """The gradients of every x with its scale and zero point."""
    return [
        reference.backward(grad_y, x, grid, grad_factor, *wanted)
        for grad_y, x, grid, grad_factor, wanted in zip(grad_ys, xs, grids, grad_factors, needs, strict=True)
    ]
