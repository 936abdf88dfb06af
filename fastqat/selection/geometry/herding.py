"""Herding: picks whose running mean stays close to the mean of all samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.geometry.blocks import mean_row, row_blocks
from fastqat.selection.geometry.screens import make_screen


def herd(features: Tensor, budget: int) -> Tensor:
    """Add argmin_i ‖(t + 1) μ − Σ_S h − h_i‖ over the samples not yet chosen, t = |S|, until there are `budget`.

    The picks are those of the plain loop in fp64; among equal distances the lowest index comes first. The loop reads all features for
    every pick. On a CPU an 8-bit copy is read instead, whose error has a bound, and the distances of the few samples that it leaves open
    are taken from the features themselves. Beyond these it needs a byte per feature, 20 bytes per sample and the blocks of one pass.

    Args:
        features: floating ``[N, D]`` on any device.
        budget: how many to pick, in [1, N].

    Returns:
        Indices int64 ``[budget]`` in the order of picking, on the device of the features.

    Raises:
        InputError: budget is out of range.

    Source: Welling, ICML 2009; Chen, Welling & Smola, UAI 2010 (arXiv 1203.3472). Here with samples of any norm and none picked twice.

    Example:
        >>> import torch
        >>> herd(torch.tensor([[0.0], [1.0], [2.0], [5.0]]), 3).tolist()
        [2, 1, 3]
    """
    if check_count("budget", budget) > len(features):
        raise InputError(f"budget must be at most the number of samples, {len(features)}; got {budget}")
    mean = mean_row(features)
    screen = make_screen(features, mean)
    wanted = mean.clone()
    picks: list[int] = []
    for _ in range(budget):
        open_rows = screen.nearest(wanted - mean)
        best = int(open_rows[_sq_distances(features, open_rows, wanted).argmin()])
        picks.append(best)
        screen.leave_out(best)
        wanted += mean - features[best].double()
    return torch.tensor(picks, device=features.device)


def _sq_distances(features: Tensor, rows: Tensor, wanted: Tensor) -> Tensor:
    """‖wanted − h_i‖² of the samples `rows`, in fp64 from differences."""
    blocks = row_blocks(len(rows), 16 * features.shape[1])
    return torch.cat([(features[rows[block]].double() - wanted).square_().sum(1) for block in blocks])
