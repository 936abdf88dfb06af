"""First ranges, by name: from statistics of the values to the scale and zero point that training starts from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.fake_quant.api import fake_quantize
from .stats import RangeStats

SCALE_FLOOR = 2.0**-23
"""No quantizer uses a scale below this: the epsilon of fp32, as torch's own observers."""

_COARSE = tuple(2 ** (-k / 8) for k in range(1, 49))
_FINE = tuple(2 ** (k / 64) for k in range(-7, 8) if k)


class CodeRange(NamedTuple):
    """The integer codes that a range is found for: their limits, whether there is a zero point, and how values become codes."""

    qmin: int
    qmax: int
    symmetric: bool = True
    semantics: str = "div"


def covering_scale(low: Tensor, high: Tensor, qmin: int, qmax: int) -> Tensor:
    """The smallest scale, at least SCALE_FLOOR, whose grid qmin·s … qmax·s covers [low, high]; unsigned grids leave out what is below 0."""
    scale = high / qmax if qmin == 0 else torch.maximum(low / qmin, high / qmax)
    return scale.clamp(min=SCALE_FLOOR)


def covering(low: Tensor, high: Tensor, codes: CodeRange) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point whose grid covers [low, high].

    symmetric:  s as `covering_scale`;  z = None
    asymmetric: s = (max(high, 0) − min(low, 0)) / (qmax − qmin);  z = clamp(round(qmin − min(low, 0)/s), qmin, qmax), int32
    """
    qmin, qmax = codes.qmin, codes.qmax
    if codes.symmetric:
        return covering_scale(low, high, qmin, qmax), None
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / (qmax - qmin)).clamp(min=SCALE_FLOOR)
    return scale, torch.round(qmin - low / scale).clamp(qmin, qmax).to(torch.int32)


def _lsq(stats: RangeStats, codes: CodeRange) -> tuple[Tensor, Tensor | None]:
    """s = 2·mean|x| / √qmax, symmetric. Source: Esser et al., LSQ, ICLR 2020, section 2.1."""
    return (2 * stats.mean_abs / math.sqrt(codes.qmax)).clamp(min=SCALE_FLOOR), None


def _minmax(stats: RangeStats, codes: CodeRange) -> tuple[Tensor, Tensor | None]:
    """The grid that covers every value seen."""
    return covering(stats.low, stats.high, codes)


def _sigma(stats: RangeStats, codes: CodeRange) -> tuple[Tensor, Tensor | None]:
    """The grid that covers μ ± 3σ. Source: Bhalgat et al., LSQ+, 2020, section 3.2 (for weights)."""
    std, mean = torch.std_mean(stats.sample, 1, correction=0)
    low, high = (mean - 3 * std).view_as(stats.low), (mean + 3 * std).view_as(stats.low)
    return covering(low, high, codes)


def _mse(stats: RangeStats, codes: CodeRange) -> tuple[Tensor, Tensor | None]:
    """The grid that covers [r·low, r·high], with the clipping ratio r ≤ 1 of least squared error, per scale.

    r runs over 2^(−k/8) down to 1/64, then over 2^(k/64) around the best of those; the larger ratio wins a tie.
    """
    sample, low, high = stats.sample, stats.low.flatten(), stats.high.flatten()

    def error(ratio: Tensor) -> Tensor:
        scale, zero_point = covering(low * ratio, high * ratio, codes)
        x_hat = fake_quantize(sample, scale, zero_point, qmin=codes.qmin, qmax=codes.qmax, axis=0, semantics=codes.semantics)
        return x_hat.sub_(sample).square_().sum(1, dtype=torch.float64)

    best = torch.ones_like(low)
    least = error(best)
    for steps in (_COARSE, _FINE):
        centre = best
        for step in steps:
            ratio = (centre * step).clamp(max=1)
            found = error(ratio)
            better = found < least
            best, least = torch.where(better, ratio, best), torch.where(better, found, least)
    ratio = best.view_as(stats.low)
    return covering(stats.low * ratio, stats.high * ratio, codes)


INITS: dict[str, Callable[[RangeStats, CodeRange], tuple[Tensor, Tensor | None]]] = {
    "lsq": _lsq,
    "minmax": _minmax,
    "mse": _mse,
    "sigma": _sigma,
}

SAMPLING_INITS = ("mse", "sigma")
"""Those that read ``stats.sample``."""

SYMMETRIC_INITS = ("lsq",)
"""Those that find no zero point."""
