"""Blocks of rows of a stated size, and the precision in which a matrix product may be trusted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 32 << 20
"""Bytes of the temporaries of one block: large enough that products run at full speed, small enough for a CPU's last-level cache."""

_WIDEST_SINGLE = 2048
"""Longest dot product that is taken in fp32: its worst-case error grows with the length, here to 1.2e-4 of the norms."""


def row_blocks(rows: int, bytes_per_row: int, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Slices that cover ``range(rows)``, each of at most `block_bytes` at `bytes_per_row`, but of one row at least.

    Example:
        >>> [(block.start, block.stop) for block in row_blocks(5, 8, 16)]
        [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, block_bytes // max(1, bytes_per_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def product_dtype(device: torch.device, width: int, largest: float) -> torch.dtype:
    """fp32 where a matrix product of `width` terms keeps its digits, else fp64.

    It does not where the user lets the device multiply in fewer digits (TF32, bf16), which is found out by a product: there are several
    switches for it, and they differ between versions. `largest` is the largest norm of a row, which must square without overflow.
    """
    if width > _WIDEST_SINGLE or not 1e-12 < largest < 1e12:
        return torch.float64
    x = torch.arange(1, 32 * 32 + 1, device=device, dtype=torch.float64).reshape(32, 32).sqrt().float()
    error = (x @ x.T).double() - x.double() @ x.double().T
    bound = unit_error(32, torch.float32) * float(x.double().norm(dim=1).max()) ** 2
    return torch.float32 if float(error.abs().max()) <= bound else torch.float64


def unit_error(width: int, dtype: torch.dtype) -> float:
    """Bound on |computed − exact| / (‖a‖‖b‖) of a dot product of `width` terms in any order, with the rounding of its inputs.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1: γ_n = n u / (1 − n u), u = eps / 2.
    """
    error = (width + 8) * torch.finfo(dtype).eps / 2
    return error / (1 - error)


def mean_row(features: Tensor, block_bytes: int = BLOCK_BYTES) -> Tensor:
    """Mean of the rows of `features` ``[N, D]``, summed in fp64. ``[D]`` fp64."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for block in row_blocks(len(features), 8 * features.shape[1], block_bytes):
        total += features[block].double().sum(0)
    return total / len(features)
