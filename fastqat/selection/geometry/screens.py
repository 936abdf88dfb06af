"""Which samples may be nearest to a point, from estimates with a bound on their error."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat.selection.geometry.blocks import product_dtype, row_blocks, unit_error

_FEATURE_CODES, _POINT_CODES = 127, 63
"""Largest 8-bit codes. (127 + 128) · 63 · 2 fits the 16-bit sums of CPUs without VNNI, should they shift the features' codes."""

_ROUNDING = 1e-6
"""Bound on the rounding of the few fp32 operations between the codes' products and the bounds, of numbers up to 1: 16 units."""


def make_screen(features: Tensor, mean: Tensor) -> FloatScreen | CodeScreen:
    """The faster of the two for `features` ``[N, D]`` with the mean row `mean` ``[D]``."""
    if features.device.type == "cpu":
        screen = CodeScreen(features, mean)
        if screen.exact_products:
            return screen
    return FloatScreen(features, mean)


class FloatScreen:
    """Reads the features for every point. ``half`` ``[N]``: half the squares of the distances to the mean, inf for those left out."""

    def __init__(self, features: Tensor, mean: Tensor):
        self._features, self._mean = features, mean
        parts = []
        for block in row_blocks(len(features), 24 * len(mean)):
            rows = features[block].double()
            parts.append((rows.norm(dim=1), (rows - mean).square_().sum(1) / 2))
        self._norms, self.half = (torch.cat(column) for column in zip(*parts, strict=True))
        self._dtype = product_dtype(features.device, len(mean), float(self._norms.max()))
        self._blocks = list(row_blocks(len(features), 16 * len(mean)))

    def nearest(self, point: Tensor) -> Tensor:
        """Every sample that may be the nearest to mean + `point` ``[D]`` of those not left out, in ascending order."""
        vector = point.to(self._dtype)
        products = torch.cat([self._features[block].to(self._dtype) @ vector for block in self._blocks])
        estimates = self.half - products.double() + self._mean @ point
        width = len(point)
        size = point.norm()
        error = unit_error(width, self._dtype) * size * self._norms
        error += unit_error(width, torch.float64) * (self.half.nan_to_num(posinf=0.0) + size * self._mean.norm())
        return _open(estimates, error)

    def leave_out(self, index: int | Tensor) -> None:
        """Never name sample `index` again."""
        self.half[index] = torch.inf

    def along_only(self) -> None:
        """From now on `nearest` names those that may have the largest product with `point`, whatever their length."""
        self.half.zero_()


class CodeScreen:
    """Reads 8-bit codes of the centred features, a quarter of the bytes of fp32.

    g = s q + e with a scale s per sample, the point u = t r + f: g·u = s t q·r + e·u + s q·f, of which |e·u| ≤ ‖e‖‖u‖ and
    |s q·f| ≤ ‖s q‖‖f‖. All lengths are in units of the longest g. ``half``: see `FloatScreen`.
    """

    def __init__(self, features: Tensor, mean: Tensor):
        size, width = features.shape
        blocks = list(row_blocks(size, 32 * width))
        self._unit = max(float((features[block].double() - mean).norm(dim=1).max()) for block in blocks) or 1.0
        self._codes = torch.full((size, width), _FEATURE_CODES, dtype=torch.int8)
        largest = torch.full((width, 1), _POINT_CODES, dtype=torch.int8)
        self.exact_products = bool((torch._int_mm(self._codes, largest) == width * _FEATURE_CODES * _POINT_CODES).all())
        self.half, self._step, self._lost, self._kept = torch.empty(4, size)
        for block in blocks:
            self._encode(block, (features[block].double() - mean).div_(self._unit))

    def _encode(self, block: slice, rows: Tensor) -> None:
        step = rows.abs().amax(1) / _FEATURE_CODES
        step = torch.where(step > 0, step, 1.0)
        codes = (rows / step[:, None]).round_()
        self._codes[block] = codes.to(torch.int8)
        kept = codes.mul_(step[:, None])
        self.half[block] = (rows.square().sum(1) / 2).float()
        self._step[block] = step.float()
        self._kept[block] = kept.norm(dim=1).float()
        self._lost[block] = (rows - kept).norm(dim=1).float()

    def nearest(self, point: Tensor) -> Tensor:
        """Every sample that may be the nearest to mean + `point` ``[D]`` of those not left out, in ascending order."""
        u = point / self._unit
        size = float(u.norm())
        step = float(u.abs().max()) / _POINT_CODES or 1.0
        codes = (u / step).round()
        lost = float((u - codes * step).norm())
        products = torch._int_mm(self._codes, codes.to(torch.int8)[:, None]).squeeze(1)
        estimates = torch.addcmul(self.half, products.float(), self._step, value=-step)
        error = (self._lost * size).add_(self._kept, alpha=lost).add_(_ROUNDING * (1 + size))
        return _open(estimates, error)


def _open(estimates: Tensor, error: Tensor) -> Tensor:
    """Indices at which the least value may be."""
    reach = (estimates + error).min()
    return (estimates - error <= reach).nonzero().squeeze(1)
