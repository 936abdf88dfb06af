"""`Rows`: what a pass gathers batch by batch, kept on its device."""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_BLOCK = 16384


class Rows:
    """Rows that arrive batch by batch and stay where they are made.

    With a known number of rows they lie in one block of just that size; else in blocks that double, so that at most twice as much is
    allocated as there is.

    Args:
        expected: number of rows; None when the end decides.
        dtype: what they are stored as.

    Example:
        >>> rows = Rows(3)
        >>> rows.append(torch.ones(2)); rows.append(torch.zeros(1))
        >>> len(rows), rows.all()
        (3, tensor([1., 1., 0.]))
    """

    def __init__(self, expected: int | None, dtype: torch.dtype = torch.float32):
        self.expected, self.dtype = expected, dtype
        self._blocks: list[Tensor] = []
        self._used = 0  # of the last block
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(block.nbytes for block in self._blocks)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row; ``()`` before the first batch."""
        return tuple(self._blocks[0].shape[1:]) if self._blocks else ()

    def append(self, rows: Tensor) -> None:
        """Take over a batch ``[B, ...]``; the first one decides about the shape of a row and the device."""
        while len(rows):
            block = self._open_block(rows)
            taken = rows[: len(block) - self._used]
            block[self._used : self._used + len(taken)].copy_(taken, non_blocking=True)
            self._used += len(taken)
            self._length += len(taken)
            rows = rows[len(taken) :]

    def _open_block(self, like: Tensor) -> Tensor:
        """The last block, or a new one when it is full."""
        if not self._blocks or self._used == len(self._blocks[-1]):
            first = self.expected or max(_FIRST_BLOCK, len(like))
            device = self._blocks[0].device if self._blocks else like.device
            self._blocks.append(torch.empty(self._length or first, *like.shape[1:], dtype=self.dtype, device=device))
            self._used = 0
        return self._blocks[-1]

    def part(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`: a view where they lie in one block."""
        parts, offset = [], 0
        for block in self._blocks:
            low, high = max(start - offset, 0), min(stop - offset, len(block))
            if low < high:
                parts.append(block[low:high])
            offset += len(block)
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0, dtype=self.dtype)

    def all(self) -> Tensor:
        """All rows so far, ``[n, ...]``."""
        return self.part(0, self._length)
