"""The three ways to a per-sample gradient norm, and which one takes the fewest operations.

G = Σ_t g_t u_tᵀ is the gradient of one sample's weight, g_t ``[O]`` the gradient of the output at position t, u_t ``[C·taps]`` what the
kernel sees there. Operations per sample, multiplications and additions one each, T output positions:

direct    Σ G², a tile of G at a time                                     2 · T · O · C/groups · taps
gram      Σ_tt' (g_t · g_t') (u_t · u_t'), half of it by symmetry         T² · (O + C · taps)
shifted   the same with u_t · u_t' = Σ_k x_{t+k} · x_{t'+k}               T² · (O + groups · taps) + Σ P² · C

P are the pixels of a phase: with stride s only pixels whose coordinates differ by a multiple of s meet, so there are s phases per spatial
dimension, or as many as the kernel has taps; with stride 1 the only phase is the whole input.

The choice weighs the counts by what was measured of the CPU kernels (AVX-512, one thread): see the constants. In the direct form mask and
slope are read element by element; the Gram forms take off each entry of G that a mask of zeros and ones clears, and need a convolution
for the inner products with a slope.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from .geometry import Geometry

Form = Literal["direct", "gram", "shifted"]
FORMS: tuple[Form, ...] = ("direct", "gram", "shifted")


# Operations of a product of tiles in the time that each of these takes:
_SHIFTED = 1.5  # one of the shifted form, with its copies onto the grid and its sums over taps
_MASKED, _SLOPED = 60, 110  # one element of a mask, of a slope, in the direct form
_CLEARED, _START = 20, 50  # one position of an entry that the mask clears; positions in the time of starting with an entry
_CONVOLVED = 1.2  # one of the convolution with a slope


def count(form: Form, x: Tensor, grad_y: Tensor, geometry: Geometry) -> float:
    """Operations per sample of `form` for x ``[N, C, D, H, W]`` and grad_y ``[N, O, D', H', W']``.

    Example:
        >>> import torch
        >>> x, grad_y = torch.empty(1, 128, 1, 16, 16), torch.empty(1, 128, 1, 16, 16)
        >>> geometry = Geometry(1, (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1))
        >>> [round(count(form, x, grad_y, geometry) / 1e6) for form in ("direct", "gram", "shifted")]
        [75, 84, 17]
    """
    channels, outputs = x.shape[1], grad_y.shape[1]
    positions = math.prod(grad_y.shape[2:])
    if form == "direct":
        return 2 * positions * outputs * channels / geometry.groups * geometry.taps
    if form == "gram":
        return positions**2 * (outputs + channels * geometry.taps)
    pairs = math.prod(map(_pairs, x.shape[2:], grad_y.shape[2:], *geometry[1:]))
    return positions**2 * (outputs + geometry.groups * geometry.taps) + pairs * channels


def _pairs(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Σ P² along one dimension over its phases: the remainders of k · dilation by the stride."""
    last = outputs - 1 + (kernel - 1) * dilation // stride  # of the pixels of a phase, padding included
    phases = {k * dilation % stride for k in range(min(kernel, stride))}
    return sum(
        max(min(last, (size - 1 + padding - phase) // stride) - max(-((phase - padding) // stride), 0) + 1, 0) ** 2 for phase in phases
    )


def cheapest(
    forms: Iterable[Form], x: Tensor, grad_y: Tensor, geometry: Geometry, mask: Tensor | None = None, slope: Tensor | None = None
) -> Form:
    """The form of `forms` that takes the least time by its count; the first of equals. A mask is read where there is a choice."""
    forms = tuple(forms)
    if len(forms) == 1:
        return forms[0]
    cleared = 0.0 if mask is None else mask.numel() - float(mask.sum())

    def cost(form: Form) -> float:
        operations = count(form, x, grad_y, geometry)
        if form == "direct":
            return operations + sum(each * factors.numel() for each, factors in ((_MASKED, mask), (_SLOPED, slope)) if factors is not None)
        beside = _CLEARED * (_START + math.prod(grad_y.shape[2:])) * cleared
        if slope is not None:
            beside += _CONVOLVED * count("direct", x, grad_y, geometry)
        return operations * (_SHIFTED if form == "shifted" else 1) + beside

    return min(forms, key=cost)
