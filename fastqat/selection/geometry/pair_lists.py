"""The pairs that still matter: for every sample those near enough to change something, with their costs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_ROWS_AT_ONCE = 1024


class PairLists:
    """Rows of different lengths in two flat arrays, `others` int32 and `costs`; row i is ``starts[i] : starts[i + 1]``."""

    BYTES = 8

    def __init__(self, rows: int, pairs: int, dtype: torch.dtype, device: torch.device):
        self.others = torch.empty(pairs, dtype=torch.int32, device=device)
        self.costs = torch.empty(pairs, dtype=dtype, device=device)
        self.starts = torch.zeros(rows + 1, dtype=torch.int64, device=device)
        self._rows = self._pairs = 0

    def append(self, costs: Tensor, keep: Tensor) -> None:
        """The next rows: the entries of `costs` ``[n, N]`` where `keep`."""
        flat = keep.flatten().nonzero()[:, 0]
        first, end = self._pairs, self._pairs + len(flat)
        if end > len(self.others):
            more = max(end, len(self.others) * 5 // 4) - len(self.others)
            self.others, self.costs = pad(self.others, (0, more)), pad(self.costs, (0, more))
        self.others[first:end] = flat % costs.shape[1]
        self.costs[first:end] = costs.flatten()[flat]
        self.starts[self._rows + 1 : self._rows + 1 + len(keep)] = first + keep.sum(1).cumsum(0)
        self._rows, self._pairs = self._rows + len(keep), end

    def rows(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows `which` one after the other: place in `which`, other sample and cost of each pair."""
        begins = self.starts[which]
        lengths = self.starts[which + 1] - begins
        place = torch.repeat_interleave(lengths)
        offset = begins - lengths.cumsum(0) + lengths
        at = torch.arange(len(place), device=place.device) + offset[place]
        return place, self.others[at], self.costs[at]

    def shorten(self, reach: Tensor) -> None:
        """Drop the pairs at costs from the `reach` ``[rows]`` of the other sample on; in place."""
        starts, end = self.starts.clone(), 0
        for first in range(0, self._rows, _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, self._rows)
            begin, stop = int(starts[first]), int(starts[last])
            others, costs = self.others[begin:stop], self.costs[begin:stop]
            row = torch.repeat_interleave(starts[first + 1 : last + 1] - starts[first:last])
            keep = costs < reach[others]
            self.starts[first + 1 : last + 1] = end + row[keep].bincount(minlength=last - first).cumsum(0)
            others, costs = others[keep], costs[keep]
            self.others[end : end + len(others)], self.costs[end : end + len(others)] = others, costs
            end += len(others)
        self._pairs = end
