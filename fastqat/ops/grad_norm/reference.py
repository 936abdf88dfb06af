"""Per-sample squared gradient norms in plain torch: unfold the input, multiply, square, a few samples at a time; fp64 for fp64 inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import Form
from .geometry import Geometry

FORMS: tuple[Form, ...] = ("direct", "gram")
_CHUNK = 1 << 23  # elements of the largest temporary of a chunk


def masked_forms(mask: Tensor) -> tuple[Form, ...]:
    """The forms that take a mask: the gradient itself is needed."""
    return ("direct",)


def direct(
    x: Tensor, grad_y: Tensor, mask: Tensor | None, slope: Tensor | None, geometry: Geometry, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Σ (mask ∘ G)² ``[N]`` and, with a slope, Σ_k (slope ∘ G) ``[N, O]``: the gradient G of each sample is formed."""
    norms, inners = [], []
    for rows, grads in chunks(x, grad_y, geometry, direct=True):
        gradient = per_sample(rows, grads).flatten(1, 2)  # [n, O, C / groups * taps]
        masked = gradient if mask is None else gradient * mask.flatten(1)
        norms.append(masked.square().sum((1, 2)) + _bias(grads, bias))
        if slope is not None:
            inners.append((gradient * slope.flatten(1)).sum(2))
    return _joined(norms, x, (0,)), None if slope is None else _joined(inners, x, (0, grad_y.shape[1]))


def gram(x: Tensor, grad_y: Tensor, mask: Tensor | None, geometry: Geometry, bias: bool, form: Form) -> Tensor:
    """Σ_tt' (g_t · g_t') (u_t · u_t') ``[N]``, clamped at 0: rounding may bring it below."""
    norms = []
    for rows, grads in chunks(x, grad_y, geometry, direct=False):
        products = (grads.transpose(2, 3) @ grads) * (rows.transpose(2, 3) @ rows)
        norms.append((products.sum((1, 2, 3)) + _bias(grads, bias)).clamp_min(0))
    return _joined(norms, x, (0,))


def per_sample(rows: Tensor, grads: Tensor) -> Tensor:
    """The gradients of one weight per sample, ``[n, groups, O / groups, C / groups * taps]``, from `unfold`'s rows and split outputs."""
    return grads @ rows.transpose(2, 3)


def unfold(x: Tensor, size: tuple[int, ...], geometry: Geometry) -> Tensor:
    """``[N, C, D, H, W]`` → ``[N, groups, C / groups * taps, T]``: what the kernel sees at each of `size` output positions."""
    (pd, ph, pw), (sd, sh, sw), (dd, dh, dw) = geometry.padding, geometry.stride, geometry.dilation
    x = F.pad(x, (pw, pw, ph, ph, pd, pd)).contiguous()
    n, c, *strides = x.stride()
    windows = x.as_strided(
        (*x.shape[:2], *geometry.kernel, *size),
        (n, c, strides[0] * dd, strides[1] * dh, strides[2] * dw, strides[0] * sd, strides[1] * sh, strides[2] * sw),
    )
    return windows.reshape(x.shape[0], geometry.groups, x.shape[1] // geometry.groups * geometry.taps, math.prod(size))


def chunks(x: Tensor, grad_y: Tensor, geometry: Geometry, direct: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Unfolded inputs and grad_y ``[n, groups, O / groups, T]`` of a few samples at a time, in fp32 or fp64."""
    size = tuple(grad_y.shape[2:])
    wide = torch.promote_types(x.dtype, torch.float32)
    positions = grad_y[0, 0].numel() if grad_y.numel() else 0
    columns = x.shape[1] * geometry.taps
    largest = max(columns * positions, grad_y.shape[1] * columns // geometry.groups if direct else geometry.groups * positions**2, 1)
    step = max(_CHUNK // largest, 1)
    for start in range(0, x.shape[0], step):
        part, grads = x[start : start + step].to(wide), grad_y[start : start + step].to(wide)
        yield (
            unfold(part, size, geometry),
            grads.reshape(grads.shape[0], geometry.groups, grads.shape[1] // geometry.groups, positions),
        )


def _bias(grads: Tensor, bias: bool) -> Tensor | float:
    """Σ_o (Σ_t g)² ``[n]``: the squared norm of the bias gradient."""
    return grads.sum(3).square().sum((1, 2)) if bias else 0.0


def _joined(parts: list[Tensor], x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.cat(parts) if parts else x.new_zeros(shape, dtype=torch.promote_types(x.dtype, torch.float32))
