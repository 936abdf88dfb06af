"""Facility location: samples that stand for all others, chosen greedily and exactly without a matrix of all pairs.

With m_i the cost of the pick that serves i, the gain of j is Σ_i max(0, m_i − c_ij). A pick lowers some m_i, and the gains of all j then
fall by what these i no longer offer: one block of rows of the costs. After t picks on average at most one pair in t + 1 has c_ij < m_i,
and only such pairs can ever matter again: as soon as they fit into memory they are listed, and each further pick reads a few lists.
Decisions that the bounds on the errors of the gains leave open are made in fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat.selection.geometry.blocks import row_blocks
from fastqat.selection.geometry.costs import Costs
from fastqat.selection.geometry.pair_lists import PairLists

TIE = 1e-10
"""Gains that differ by less than this share of the best are equal, and the lowest index is taken."""

MAX_BYTES = 1 << 29
"""Default limit of the lists."""

_TILE = (512, 2048)
_SAMPLED = 128
_SUM_ERROR = 16


def facility_location(
    features: Tensor, budget: int, *, similarity: str = "euclidean", bandwidth: float | None = None, max_bytes: int = MAX_BYTES
) -> tuple[Tensor, Tensor]:
    """The greedy maximum of F(S) = Σ_i max_{j∈S} s_ij: add the sample of the largest gain until there are `budget`.

    The picks are those of the plain loop in fp64. Beyond the features it needs a copy of them in fp32, the lists, 100 bytes per sample
    and about 50 MB. Up to three times N² · D multiply-adds before the lists are made, little after that.

    Args:
        features: floating ``[N, D]``, finite, on any device.
        budget: how many to pick, in [1, N].
        similarity, bandwidth: s_ij = constant − c_ij, see `Costs`.
        max_bytes: of the lists.

    Returns:
        Indices int64 ``[budget]`` in the order of picking, and int64 ``[N]``: the place in that order of the pick that serves a sample,
        the earliest among equals. Once no sample has a gain the rest are the lowest indices, and serve themselves only.

    Raises:
        InputError: see `Costs`.

    Source: Nemhauser, Wolsey & Fisher, Mathematical Programming 14, 1978; for coresets CRAIG, Mirzasoleiman et al., ICML 2020.

    Example:
        >>> import torch
        >>> picks, served_by = facility_location(torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0]]), 2)
        >>> picks.tolist(), served_by.tolist()
        ([2, 3], [0, 0, 0, 1, 1])
    """
    state = _Greedy(Costs(features, similarity, bandwidth), max_bytes)
    picks: list[int] = []
    while len(picks) < budget and (best := state.best()) is not None:
        state.take(best, len(picks))
        picks.append(best)
    indices = torch.tensor(picks, dtype=torch.int64, device=features.device)
    rest = (~state.taken).nonzero().flatten()[: budget - len(picks)]
    state.served_by[rest] = torch.arange(len(picks), budget, device=features.device)
    return torch.cat([indices, rest]), state.served_by


class _Greedy:
    """The costs `serving` of the picks that serve the samples, the gains of all, `doubts` (squared bounds on their errors), the lists."""

    def __init__(self, costs: Costs, max_bytes: int):
        self.costs, self.max_pairs = costs, max_bytes // PairLists.BYTES
        size, device = len(costs), costs.device
        self.serving = torch.full((size,), costs.start, dtype=torch.float64, device=device)
        self.served_by = torch.zeros(size, dtype=torch.int64, device=device)
        self.taken = torch.zeros(size, dtype=torch.bool, device=device)
        self.gains, self.doubts = self.serving.new_zeros(size), self.serving.new_zeros(size)
        self.lists: PairLists | None = None
        if max_bytes >= size**2 * costs.dtype.itemsize:
            costs.remember()
        self.age, self.shorten_at = 0, 2
        self._evaluate()

    def best(self) -> int | None:
        """The sample of the largest gain, None when there is no gain left."""
        errors = self.doubts.sqrt()
        upper = self.gains + errors
        open_ = (upper >= (self.gains - errors).max()).nonzero().flatten()
        if len(open_) > 1 or float(upper[open_]) <= 2 * float(errors[open_]):
            gains = self._exact_gains(open_)
            largest = float(gains.max())
            if largest <= 0:
                return None
            open_ = open_[gains >= largest * (1 - TIE)]
        return int(open_[0])

    def _exact_gains(self, candidates: Tensor) -> Tensor:
        """Gains of `candidates` in fp64 from the samples that any of them could serve."""
        if self.costs.remembered:
            samples = (self.costs.block(candidates, slice(None)) < self.costs.below(self.serving)).any(0).nonzero().flatten()
        elif self.lists is None:
            samples = torch.arange(len(self.costs), device=self.costs.device)
        else:
            _, others, costs = self.lists.rows(candidates)
            samples = others[costs < self.costs.below(self.serving[others])].unique()
        gains = self.serving.new_zeros(len(candidates))
        for part in row_blocks(len(samples), 32 * len(candidates)):
            some = samples[part]
            gains += (self.serving[some, None] - self.costs.exact(some, candidates)).clamp_min_(0).sum(0)
        return gains

    def take(self, pick: int, place: int) -> None:
        """Let `pick` serve those to whom it is nearer than what serves them, and bring the gains up to date."""
        samples, values = self._could_serve(pick)
        near = samples[values < self.costs.below(self.serving[samples])]
        exact = self.costs.exact(near, torch.tensor([pick], device=near.device))[:, 0]
        closer = exact < self.serving[near]
        near, exact = near[closer], exact[closer]
        before = self.serving[near]
        self.serving[near] = exact
        self.served_by[near] = place
        self.taken[pick] = True
        self.gains[pick], self.doubts[pick] = -torch.inf, 0
        if self.lists is not None:
            self._update_from_lists(near, before)
        elif 2 * len(near) > len(self.costs) and self.costs.remembered:
            self._evaluate()
        elif not self.costs.remembered and (pairs := self._count_pairs()) <= self.max_pairs:
            self._list_pairs(pairs)
        elif 2 * len(near) > len(self.costs):
            self._evaluate()
        else:
            self._update(near, before)

    def _could_serve(self, pick: int) -> tuple[Tensor, Tensor]:
        """Samples that `pick` could serve, and what `Costs.block` gives for these."""
        one = torch.tensor([pick], device=self.costs.device)
        if self.lists is not None:
            return self.lists.rows(one)[1:]
        return torch.arange(len(self.costs), device=self.costs.device), self.costs.block(one, slice(None))[0]

    def _update(self, changed: Tensor, before: Tensor) -> None:
        """Take from all gains what `changed` offered when their costs were `before` and do not offer any more."""
        now = self.serving[changed].to(self.costs.dtype)
        was, reach = before.to(self.costs.dtype), self.costs.below(before)
        for part in row_blocks(len(changed), 16 * len(self.costs)):
            costs = self.costs.block(changed[part], slice(None))
            lost = torch.minimum((was[part, None] - costs).clamp_min_(0), (was - now)[part, None])
            self.gains -= lost.sum(0, dtype=torch.float64)
            if not self.costs.remembered:
                self.doubts += 4 * self.costs.doubt(costs, reach[part, None], changed[part], slice(None))

    def _update_from_lists(self, changed: Tensor, before: Tensor) -> None:
        """The same; the lists are shortened whenever the number of picks has doubled."""
        assert self.lists is not None
        fall = before - self.serving[changed]
        place, others, costs = self.lists.rows(changed)
        lost = torch.minimum((before[place] - costs).clamp_min_(0), fall[place])
        self.gains.index_add_(0, others, lost, alpha=-1)
        self.age += 1
        if self.age >= self.shorten_at:
            self.lists.shorten(self.costs.below(self.serving))
            self.shorten_at *= 2

    def _evaluate(self) -> None:
        """All gains anew. Costs are symmetric: a tile above the diagonal serves its rows and its columns."""
        self.gains, self.doubts = torch.zeros_like(self.gains), torch.zeros_like(self.doubts)
        tall, wide = _TILE
        size = len(self.costs)
        for top in range(0, size, tall):
            rows = slice(top, min(top + tall, size))
            self._add(rows, rows, self.costs.block(rows, rows))
            for left in range(rows.stop, size, wide):
                columns = slice(left, min(left + wide, size))
                costs = self.costs.block(rows, columns)
                self._add(rows, columns, costs)
                self._add(columns, rows, costs.T)
        self._settle()

    def _add(self, samples: slice, candidates: slice, costs: Tensor) -> None:
        """Add what `samples` offer to `candidates`, with costs ``[samples, candidates]``."""
        serving = self.serving[samples, None]
        reach, serving = self.costs.below(serving), serving.to(costs.dtype)
        self.gains[candidates] += (serving - costs).clamp_min_(0).sum(0)
        self.doubts[candidates] += self.costs.doubt(costs, reach, samples, candidates)

    def _settle(self) -> None:
        """Count in the rounding of the sums, and keep what is taken out of the way."""
        self.doubts += (_SUM_ERROR * torch.finfo(self.costs.dtype).eps * self.gains) ** 2
        self.gains[self.taken] = -torch.inf
        self.doubts[self.taken] = 0

    def _matters(self, rows: slice | Tensor, costs: Tensor) -> Tensor:
        """Which of the costs ``[rows, N]`` either of the two samples may still gain from."""
        reach = self.costs.below(self.serving)
        return costs < torch.maximum(reach[rows][:, None], reach)

    def _count_pairs(self) -> int:
        """An estimate, from some rows, of how many pairs still matter."""
        size = len(self.costs)
        rows = torch.arange(0, size, -(-size // _SAMPLED), device=self.costs.device)
        matters = sum(int(self._matters(some, self.costs.block(some, slice(None))).sum()) for some in rows.split(32))
        return matters * size // len(rows)

    def _list_pairs(self, pairs: int) -> None:
        """List the pairs that still matter, and evaluate all gains by the way."""
        size = len(self.costs)
        self.lists = PairLists(size, pairs, self.costs.dtype, self.costs.device)
        self.gains, self.doubts = torch.zeros_like(self.gains), torch.zeros_like(self.doubts)
        for rows in row_blocks(size, 16 * size):
            costs = self.costs.block(rows, slice(None))
            self.lists.append(costs, self._matters(rows, costs))
            self._add(slice(None), rows, costs.T)
        self._settle()
