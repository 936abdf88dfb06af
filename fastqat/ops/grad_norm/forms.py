"""The three ways to a per-sample gradient norm, and which one takes the fewest operations.

G = Σ_t g_t u_tᵀ is the gradient of one sample's weight, g_t ``[O]`` the gradient of the output at position t, u_t ``[C·taps]`` what the
kernel sees there. Operations per sample, multiplications and additions one each, T output positions:

direct    Σ G², a tile of G at a time                                     2 · T · O · C/groups · taps
gram      Σ_tt' (g_t · g_t') (u_t · u_t'), half of it by symmetry         T² · (O + C · taps)
shifted   the same with u_t · u_t' = Σ_k x_{t+k} · x_{t'+k}               T² · (O + groups · taps) + Σ P² · C

P are the pixels of a phase: with stride s only pixels whose coordinates differ by a multiple of s meet, so there are s phases per spatial
dimension, or as many as the kernel has taps; with stride 1 the only phase is the whole input.

A mask that clears entries of G costs nothing in the direct form; the Gram forms take off each cleared entry, 2 · T. Inner products with
a slope come with the direct form; a Gram form needs a convolution for them, 2 · T · O · C/groups · taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from .geometry import Geometry

Form = Literal["direct", "gram", "shifted"]
FORMS: tuple[Form, ...] = ("direct", "gram", "shifted")


def count(form: Form, x: Tensor, grad_y: Tensor, geometry: Geometry, cleared: float = 0, inner: bool = False) -> float:
    """Operations per sample of `form` for x ``[N, C, D, H, W]`` and grad_y ``[N, O, D', H', W']``.

    Args:
        cleared: entries of the weight that the mask clears.
        inner: inner products with a slope are wanted too.

    Example:
        >>> import torch
        >>> x, grad_y = torch.empty(1, 128, 1, 16, 16), torch.empty(1, 128, 1, 16, 16)
        >>> geometry = Geometry(1, (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1))
        >>> [round(count(form, x, grad_y, geometry) / 1e6) for form in ("direct", "gram", "shifted")]
        [75, 84, 17]
    """
    channels, outputs = x.shape[1], grad_y.shape[1]
    positions = math.prod(grad_y.shape[2:])
    direct = 2 * positions * outputs * channels / geometry.groups * geometry.taps
    if form == "direct":
        return direct
    beside = 2 * positions * cleared + (direct if inner else 0)
    if form == "gram":
        return positions**2 * (outputs + channels * geometry.taps) + beside
    pairs = math.prod(map(_pairs, x.shape[2:], grad_y.shape[2:], *geometry[1:]))
    return positions**2 * (outputs + geometry.groups * geometry.taps) + pairs * channels + beside


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
    """The form of `forms` with the fewest operations; the first of equals. A mask of zeros and ones is read where there is a choice."""
    forms = tuple(forms)
    if len(forms) == 1:
        return forms[0]
    cleared = 0.0 if mask is None else mask.numel() - float(mask.sum())
    return min(forms, key=lambda form: count(form, x, grad_y, geometry, cleared, slope is not None))
