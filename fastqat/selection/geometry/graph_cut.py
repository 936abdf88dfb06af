"""Graph cut: samples that are like all others and unlike each other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.geometry.blocks import row_blocks
from fastqat.selection.geometry.directions import MovingDirection


def graph_cut(features: Tensor, budget: int, *, redundancy: float = 1.0, similarity: Literal["cosine", "dot"] = "cosine") -> Tensor:
    """The greedy maximum of F(S) = Σ_{i∈V, j∈S} s_ij − λ Σ_{i,j∈S} s_ij: add argmax_j Σ_i s_ij − 2λ Σ_{i∈S} s_ij − λ s_jj.

    With s_ij = x_i·x_j that is x_j·(Σ_V x − 2λ Σ_S x) − λ s_jj: no matrix of similarities is needed, and the direction turns little from
    pick to pick, see `MovingDirection`. The picks are those of the plain loop in fp64, the lowest index of equals. Beyond the features it
    needs copies of them in fp64 and in fp32.

    Args:
        features: floating ``[N, D]``, finite, on any device.
        budget: how many to pick, in [1, N].
        redundancy: λ ≥ 0. F never falls as S grows up to λ = ½ where no s_ij is negative.
        similarity: ``"cosine"``, 0 for a row of zeros, or ``"dot"``.

    Returns:
        Indices int64 ``[budget]`` in the order of picking.

    Raises:
        InputError: λ is not a number ≥ 0, or an unknown similarity.

    Source: Iyer et al., ALT 2021 (arXiv 2006.15412), section 2; submodlib has the same F, DeepCore the same gain at λ = 1 less s_jj.

    Example:
        >>> import torch
        >>> graph_cut(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 2, redundancy=1.0).tolist()
        [1, 2]
    """
    if isinstance(redundancy, bool) or not isinstance(redundancy, int | float) or not 0 <= redundancy < float("inf"):
        raise InputError(f"redundancy must be a number ≥ 0; got {redundancy!r}")
    if similarity not in ("cosine", "dot"):
        raise InputError(f"similarity must be 'cosine' or 'dot'; got {similarity!r}")
    rows = _rows(features, similarity == "cosine")
    search = MovingDirection(rows)
    direction = rows.sum(0)
    direction[-1] = -redundancy
    picks: list[int] = []
    while len(picks) < budget:
        index, _ = search.best(direction)
        search.take(index)
        picks.append(index)
        direction = direction - 2 * redundancy * rows[index]
        direction[-1] = -redundancy
    return torch.tensor(picks, dtype=torch.int64, device=features.device)


def _rows(features: Tensor, unit: bool) -> Tensor:
    """The samples in fp64, all of norm 1 or at most 1, with s_jj as one more feature, ``[N, D + 1]``."""
    size, width = features.shape
    rows = torch.empty(size, width + 1, dtype=torch.float64, device=features.device)
    for block in row_blocks(size, 16 * width):
        x = features[block].double()
        norms = x.norm(dim=1, keepdim=True)
        rows[block, :-1] = x / torch.where(norms > 0, norms, 1.0) if unit else x
    largest = 1.0 if unit else max(float(rows[block, :-1].norm(dim=1).max()) for block in row_blocks(size, 16 * width)) or 1.0
    for block in row_blocks(size, 16 * width):
        rows[block, :-1] /= largest
        rows[block, -1] = rows[block, :-1].square().sum(1)
    return rows
