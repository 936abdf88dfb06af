"""Samples under a metric: estimated distances by matrix products, each with a bound on its error, and exact ones for the few that matter.

Deciding by estimates alone would be wrong where these lose digits (near 0, at ties); deciding by exact distances alone would cost as many
passes over the features as there are picks. The bound says which exact distances are needed, so that the decisions are those of fp64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastqat.selection.geometry.blocks import BLOCK_BYTES, product_dtype, row_blocks, unit_error
from fastqat.selection.geometry.metrics import Metric


class Side(NamedTuple):
    """Samples to compare with, ready for products: their `indices`, `matrix` ``[M, E]`` and `bias` ``[M]``, and `reach`, the largest norms
    of a row of the matrix and of the bias.
    """

    indices: Tensor
    matrix: Tensor
    bias: Tensor
    reach: tuple[float, float]


class Points:
    """`features` ``[N, D]`` under `metric`.

    Beyond the features it holds two numbers per sample. ``own`` ``[N]`` fp64: see `metrics`. ``norm`` ``[N]`` fp64: of the left factors.
    """

    def __init__(self, features: Tensor, metric: Metric, block_bytes: int = BLOCK_BYTES):
        self.features, self.metric, self.block_bytes = features, metric, block_bytes
        parts = [self._numbers(features[block]) for block in row_blocks(len(features), 16 * self.metric.width, block_bytes)]
        self.own, self.norm = (torch.cat(column) for column in zip(*parts, strict=True))
        largest = float(self.norm.max())
        self.dtype = product_dtype(features.device, self.metric.width, largest) if self.metric.single else torch.float64

    def _numbers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.metric.own(rows), self.metric.left(rows, torch.float64).norm(dim=1)

    def __len__(self) -> int:
        return len(self.features)

    def side(self, indices: Tensor) -> Side:
        """The samples `indices`, ready for products."""
        matrix, bias = self.metric.right(self.features[indices])
        reach = (float(matrix.norm(dim=1).max()), float(bias.abs().max()))
        return Side(indices, matrix.to(self.dtype), bias.to(self.dtype), reach)

    def estimates(self, rows: slice | Tensor, side: Side) -> tuple[Tensor, Tensor]:
        """Distances of `rows` to `side` less their ``own``, ``[n, M]``, and a bound on their error, ``[n]`` fp64."""
        left = self.metric.left(self.features[rows], self.dtype)
        products = torch.addmm(side.bias, left, side.matrix.T, alpha=-1)
        largest, bias = side.reach
        floor = self.metric.width * torch.finfo(self.dtype).tiny
        return products, unit_error(self.metric.width, self.dtype) * (self.norm[rows] * largest + bias + self.own[rows].abs()) + floor

    def exact(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of sample a[i] to sample b[i], for each i, or to the only one of `b`, in fp64."""
        others = self.features[b] if len(b) == 1 else None
        parts = []
        for block in row_blocks(len(a), 32 * self.metric.width, self.block_bytes):
            parts.append(self.metric.pairs(self.features[a[block]], self.features[b[block]] if others is None else others))
        return torch.cat(parts) if parts else self.own.new_empty(0)

    def lower(self, values: Tensor, block: slice, side: Side, turns: Tensor | None = None) -> Tensor:
        """`values` ``[n]`` of the samples in `block`, each lowered to its exact distance to the nearest of `side`, or of the first `turns`
        ``[n]`` of it, where that is less.

        Of a pair the exact distance is taken only if its estimate leaves open that it is the nearest, and nearer than the value. A value
        that is not positive cannot fall.
        """
        products, error = self.estimates(block, side)
        if turns is not None:
            products.masked_fill_(torch.arange(len(side.indices), device=turns.device) >= turns[:, None], torch.inf)
        own = self.own[block]
        nearest = products.amin(1).double() + own
        rows = ((nearest <= values + error) & (values > 0)).nonzero().squeeze(1)
        if not len(rows):
            return values
        limit = torch.minimum(values[rows], nearest[rows] + error[rows]) + error[rows] - own[rows]
        row, column = (products[rows] <= limit[:, None]).nonzero(as_tuple=True)
        row = rows[row]
        partners = side.indices if len(side.indices) == 1 else side.indices[column]
        return values.scatter_reduce(0, row, self.exact(row + block.start, partners), "amin")
