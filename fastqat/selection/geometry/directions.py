"""The sample that goes furthest in a direction, again and again, while the direction turns little by little."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastqat.selection.geometry.blocks import mean_row, product_dtype, row_blocks, unit_error
from fastqat.selection.geometry.screens import FloatScreen

TIE = 1e-10
"""Products that differ by less than this share of ‖q‖ and the largest norm are equal, and the lowest index is taken."""

_FOLLOWED = 1024
_PATIENCE = 16


class _Leaders(NamedTuple):
    """The samples with the largest products when the direction was `at`: `indices` ascending, `rows` fp64; all others are below `rest`."""

    indices: Tensor
    rows: Tensor
    rest: float
    at: Tensor


class MovingDirection:
    """Answers argmax_j x_j·q over the rows of `features` ``[N, D]`` that are left, for one q after the other, as fp64 would.

    Of all products at one q the 1024 largest are followed in fp64, and while the best of these is ahead of all that the others can have
    become as q turned, these need not be looked at. Where q turns too fast for that, all features are read in fp32 for every q, and the
    few samples that this leaves open are taken in fp64. (Eight bits do not do: next to a residual all samples are nearly alike.)

    Holds 1024 rows in fp64, and a copy of features that are not in fp32 (or need fp64).
    """

    def __init__(self, features: Tensor):
        self._features = features
        size, width = features.shape
        self.largest = max(float(features[block].double().norm(dim=1).max()) for block in row_blocks(size, 16 * width))
        dtype = product_dtype(features.device, width, self.largest or 1.0)
        self._rows = features.to(dtype)
        self._error = unit_error(width, dtype) * self.largest
        self._left = torch.ones(size, dtype=torch.bool, device=features.device)
        self._leaders: _Leaders | None = None
        self._screen: FloatScreen | None = None
        self._answers = self._looks = 0

    def take(self, index: int) -> None:
        """The sample is not left any more."""
        self._left[index] = False
        if self._screen is not None:
            self._screen.leave_out(index)

    def left(self) -> Tensor:
        """Indices of the samples that are left, ascending."""
        return self._left.nonzero().flatten()

    def best(self, direction: Tensor) -> tuple[int, float]:
        """The sample with the largest product with `direction` ``[D]`` fp64, the lowest index of equals, and that product."""
        self._answers += 1
        if self._screen is None:
            found = self._follow(direction)
            if found is not None:
                return found
        return self._exact(direction, self.left() if self._screen is None else self._screen.nearest(direction))

    def _follow(self, direction: Tensor) -> tuple[int, float] | None:
        """The best of the leaders, after another look where it is needed; None where it is not surely the best of all."""
        for leaders in (self._leaders, None):
            leaders = leaders or self._look(direction)
            products = (leaders.rows @ direction).masked_fill_(~self._left[leaders.indices], -torch.inf)
            largest = float(products.max())
            if largest - self._tie(direction) > self._most_of_others(leaders, direction):
                return int(leaders.indices[(products >= largest - self._tie(direction)).nonzero()[0, 0]]), largest
        return None

    def _tie(self, direction: Tensor) -> float:
        return TIE * self.largest * float(direction.norm())

    def _most_of_others(self, leaders: _Leaders, direction: Tensor) -> float:
        """Bound on the products of those that are not followed: q = α q₀ + s, so that x·q ≤ α x·q₀ + ‖x‖ ‖s‖."""
        alpha = max(0.0, float(direction @ leaders.at) / max(float(leaders.at @ leaders.at), torch.finfo(torch.float64).tiny))
        return alpha * leaders.rest + self.largest * float((direction - alpha * leaders.at).norm())

    def _look(self, direction: Tensor) -> _Leaders:
        """Compute all products and find those to follow; make a screen if that was of no use most of the time."""
        self._looks += 1
        if self._looks >= _PATIENCE and 4 * self._looks > self._answers:
            self._screen = FloatScreen(self._features, mean_row(self._features))
            self._screen.along_only()
            self._screen.leave_out((~self._left).nonzero().flatten())
        products = self._rows @ direction.to(self._rows.dtype)
        products.masked_fill_(~self._left, -torch.inf)
        top = products.topk(min(_FOLLOWED + 1, len(products)))
        rest = float(top.values[-1]) + self._error * float(direction.norm()) if len(products) > _FOLLOWED else -torch.inf
        indices = top.indices[:_FOLLOWED].sort().values
        self._leaders = _Leaders(indices, self._features[indices].double(), rest, direction)
        return self._leaders

    def _exact(self, direction: Tensor, among: Tensor) -> tuple[int, float]:
        """The best of `among`, from the features."""
        blocks = row_blocks(len(among), 16 * self._features.shape[1])
        products = torch.cat([self._features[among[block]].double() @ direction for block in blocks])
        largest = float(products.max())
        return int(among[(products >= largest - self._tie(direction)).nonzero()[0, 0]]), largest
