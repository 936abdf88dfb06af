"""What it costs to let one sample stand for another: by blocks with a bound on the error, and exactly for the few pairs that decide."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastqat._errors import InputError
from fastqat.selection.geometry.blocks import mean_row, product_dtype, row_blocks, unit_error

SIMILARITIES = ("euclidean", "cosine", "rbf")
_TINY = torch.finfo(torch.float32).tiny
_TALL = 128


class Costs:
    """Costs c_ij = c_ji between the rows of `features` ``[N, D]``; the similarity of two samples is a constant minus their cost.

    ``start`` is the cost of a sample that nobody serves.

    * ``"euclidean"``: ‖x_i − x_j‖ in units of a power of two, such that none is above 2; ``start`` is more than any of them.
    * ``"cosine"``: 1 − cos(x_i, x_j), 1 for a row of zeros; ``start`` is 1, so that samples at more than a right angle cannot serve.
    * ``"rbf"``: 1 − exp(−‖x_i − x_j‖² / 2σ²), σ = `bandwidth`, None for the root of the mean squared distance to the mean; ``start`` is 1.

    Holds one copy of the features in the precision of `product_dtype`, centred or normalised.

    Raises:
        InputError: unknown similarity, or a bandwidth that is not a positive number or not of ``"rbf"``.
    """

    def __init__(self, features: Tensor, similarity: str, bandwidth: float | None = None):
        _check(similarity, bandwidth)
        self.similarity, self._features = similarity, features
        width = features.shape[1]
        self._wide = features.dtype == torch.float64 or not 1e-12 < float(features.abs().max()) < 1e12
        self._scale = 1.0 if similarity == "cosine" else self._centre()
        dtype = product_dtype(features.device, width, 1.0)
        self._rows = torch.empty(features.shape, dtype=dtype, device=features.device)
        for block in row_blocks(len(features), 16 * width):
            x = self._shifted(block)
            self._rows[block] = x / _norms(x).to(x.dtype).clamp_min_(_TINY) if similarity == "cosine" else x / self._scale
        self.sq_norms = self._rows.square().sum(1)
        variance = float(self.sq_norms.mean(dtype=torch.float64)) if bandwidth is None else (bandwidth / self._scale) ** 2
        self._twice_variance = 2 * variance or 1.0
        self._worst, self._usual = _product_errors(width, dtype)
        self._own = 1 - self.sq_norms.sign() if similarity == "cosine" else torch.zeros_like(self.sq_norms)
        self.start = 2.01 if self._plain else 1.0
        self._all: Tensor | None = None

    def _centre(self) -> float:
        """Find the mean, and return the power of two that is next above the largest distance to it: dividing by that is exact."""
        x = self._features
        self._mean = mean_row(x)
        largest = max(float(_norms(self._shifted(block)).max()) for block in row_blocks(len(x), 16 * x.shape[1]))
        return 2.0 ** math.ceil(math.log2(largest)) if largest > 0 else 1.0

    def _shifted(self, block: slice) -> Tensor:
        """Rows as they are or less the mean, in fp32 where that has the range: a difference is rounded relative to itself."""
        x = self._features[block].to(torch.float64 if self._wide else torch.float32)
        return x if self.similarity == "cosine" else x - self._mean.to(x.dtype)

    @property
    def _plain(self) -> bool:
        return self.similarity == "euclidean"

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self._rows.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what `block` gives."""
        return self._rows.dtype

    def block(self, rows: Tensor | slice, columns: slice) -> Tensor:
        """Costs ``[rows, columns]``, not to be written to, from one matrix product; that of a sample to itself is exact."""
        if self._all is not None:
            return self._all[rows, columns]
        x, y = self._rows[rows], self._rows[columns]
        if self.similarity == "cosine":
            costs = (x @ y.T).neg_().add_(1)
        else:
            costs = torch.addmm(self.sq_norms[columns], x, y.T, alpha=-2).add_(self.sq_norms[rows][:, None]).clamp_min_(0)
            costs = costs.sqrt_() if self._plain else costs.div_(-self._twice_variance).expm1_().neg_()
        samples, row, column = self._selves(rows, columns)
        costs[row, column] = self._own[samples]
        return costs

    @property
    def remembered(self) -> bool:
        """Whether `block` gives the same values for a pair every time."""
        return self._all is not None

    def remember(self) -> None:
        """Compute all costs now and keep them, N² values: those above the diagonal from products, those below it as copies."""
        size = len(self)
        everything = torch.empty(size, size, dtype=self.dtype, device=self.device)
        for top in range(0, size, _TALL):
            rows = slice(top, min(top + _TALL, size))
            costs = self.block(rows, slice(top, None))
            everything[rows, top:] = costs
            everything[rows.stop :, rows] = costs[:, len(costs) :].T
        self._all = everything

    def _selves(self, rows: Tensor | slice, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Samples that are in both `rows` and `columns`, and where."""
        everyone = torch.arange(len(self), device=self.device)
        samples, first, last = everyone[rows], columns.start or 0, len(self) if columns.stop is None else columns.stop
        row = ((samples >= first) & (samples < last)).nonzero().flatten()
        return samples[row], row, samples[row] - first

    def squared_errors(self, costs: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
        """Bounds on the squared errors of `costs` as `block` gave them, from `sq_norms` of the two samples of each.

        A squared distance that is off by δ is a distance that is off by at most δ / c, and by √δ. The rounding of a product of D terms is
        taken to stay below 6 √D u of the norms: beyond that only with a probability of 1e-7. A sum of such errors stays still further
        below the root of the sum of their squares.

        Source: Higham & Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019.
        """
        if not self._plain:
            return torch.full_like(costs, self.largest_squared_error)
        off = (ours + theirs).mul_(2 * self._usual)
        return torch.maximum(costs.square(), off).clamp_min_(_TINY).reciprocal_().mul_(off.square_())

    @property
    def largest_squared_error(self) -> float:
        """Bound on the `squared_errors` of all pairs."""
        if self._plain:
            return 4 * self._usual
        steepest = 1.0 if self.similarity == "cosine" else 4 / self._twice_variance
        return (steepest * self._usual + 4 * torch.finfo(self.dtype).eps) ** 2

    def below(self, limit: Tensor) -> Tensor:
        """What `block` gives is below this wherever the true cost is below `limit`; in the precision of `block`."""
        limit = limit.to(self.dtype)
        if self._plain:
            return (limit.square() + 4 * self._worst).sqrt_()
        return limit + (self._worst * (1.0 if self.similarity == "cosine" else 4 / self._twice_variance) + 4 * torch.finfo(self.dtype).eps)

    def exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Costs in fp64 ``[rows, columns]``: the same bits for a pair wherever it stands, and for equal samples, so that these tie."""
        y = self._exact_rows(columns)
        blocks = row_blocks(len(rows), 8 * (2 * y.shape[1] + 3 * len(y)))
        parts = [self._exact_block(self._exact_rows(rows[block]), y) for block in blocks]
        return torch.cat(parts) if parts else y.new_empty(0, len(y))

    def _exact_rows(self, which: Tensor) -> Tensor:
        x = self._features[which].double()
        return normalize(x, eps=_TINY) if self.similarity == "cosine" else x / self._scale

    def _exact_block(self, x: Tensor, y: Tensor) -> Tensor:
        distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        if self._plain:
            return distances
        if self.similarity == "rbf":
            return (-distances.square() / self._twice_variance).expm1().neg_()
        empty = (x == 0).all(1)[:, None] | (y == 0).all(1)
        return (distances.square() / 2).masked_fill_(empty, 1.0)


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)


def _product_errors(width: int, dtype: torch.dtype) -> tuple[float, float]:
    """Errors of a dot product of `width` terms relative to the norms: never above the first, hardly ever above the second."""
    worst = unit_error(width, dtype)
    return worst, min(worst, (6 * width**0.5 + 8) * torch.finfo(dtype).eps / 2)


def _check(similarity: Any, bandwidth: Any) -> None:
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity must be one of {', '.join(SIMILARITIES)}; got {similarity!r}")
    if bandwidth is None:
        return
    if similarity != "rbf":
        raise InputError(f"bandwidth belongs to similarity='rbf'; got {bandwidth!r} with {similarity!r}; leave it out")
    if isinstance(bandwidth, bool) or not isinstance(bandwidth, int | float) or not 0 < bandwidth < float("inf"):
        raise InputError(f"bandwidth must be a positive number or None; got {bandwidth!r}")
