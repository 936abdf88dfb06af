"""The three ways to a per-sample gradient norm, and which one takes the fewest operations.

G = Σ_t g_t u_tᵀ is the gradient of one sample's weight, g_t ``[O]`` the gradient of the output at position t, u_t ``[C·taps]`` what the
kernel sees there. Operations per sample, multiplications and additions one each, P the positions of the padded input:

direct    Σ G², a tile of G at a time                                     2 · T · O · C/groups · taps
gram      Σ_tt' (g_t · g_t') (u_t · u_t'), half of it by symmetry         T² · (O + C · taps)
shifted   the same with u_t · u_t' = Σ_k x_{t+k} · x_{t'+k}, stride 1     P² · (O + C + groups · taps)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from .geometry import Geometry

Form = Literal["direct", "gram", "shifted"]


def count(form: Form, x: Tensor, grad_y: Tensor, geometry: Geometry) -> float:
    """Operations per sample of `form`; infinite where it does not apply. x ``[N, C, D, H, W]``, grad_y ``[N, O, D', H', W']``."""
    channels, outputs = x.shape[1], grad_y.shape[1]
    positions = math.prod(grad_y.shape[2:])
    if form == "direct":
        return 2 * positions * outputs * channels / geometry.groups * geometry.taps
    if form == "gram":
        return positions**2 * (outputs + channels * geometry.taps)
    if geometry.stride != (1, 1, 1) or geometry.taps == 1:
        return math.inf
    padded = math.prod(n + 2 * p for n, p in zip(x.shape[2:], geometry.padding, strict=True))
    return padded**2 * (outputs + channels + geometry.groups * geometry.taps)


def cheapest(forms: Iterable[Form], x: Tensor, grad_y: Tensor, geometry: Geometry) -> Form:
    """The form of `forms` with the fewest operations; the first of equals."""
    return min(forms, key=lambda form: count(form, x, grad_y, geometry))
