"""Facility location: samples that stand for all others, chosen greedily and exactly without a matrix of all pairs.

With m_i the cost of the pick that serves i, the gain of j is Σ_i max(0, m_i − c_ij). Gains only fall: what was once a bound stays one, and
for each pick only the few samples whose old bound is ahead of the best new one are looked at (Minoux, 1978). Only pairs with c_ij < m_i can
ever matter again: where not all costs fit into memory, these are listed as soon as they do, and each further pick reads a few lists.
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
_LOOK = 8
_SAMPLED = 128
_SUM_ERROR = 16


def facility_location(
    features: Tensor, budget: int, *, similarity: str = "euclidean", bandwidth: float | None = None, max_bytes: int = MAX_BYTES
) -> tuple[Tensor, Tensor]:
    """The greedy maximum of F(S) = Σ_i max_{j∈S} s_ij: add the sample of the largest gain until there are `budget`.

    The picks are those of the plain loop in fp64. Beyond the features it needs a copy of them in fp32, the lists, 100 bytes per sample
    and about 50 MB. About twice N² · D multiply-adds until the lists are made, half of that where all costs are kept, little after that.

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
    """The costs `serving` of the picks that serve the samples, and bounds on the gains: `upper` of all, `lower` of those looked at since
    the last pick (−∞: not looked at). Below `reach` a cost as `Costs.block` gives it may be a gain."""

    def __init__(self, costs: Costs, max_bytes: int):
        self.costs, self.max_pairs = costs, max_bytes // PairLists.BYTES
        size, device = len(costs), costs.device
        self.serving = torch.full((size,), costs.start, dtype=torch.float64, device=device)
        self.reach = costs.below(self.serving)
        self.served_by = torch.zeros(size, dtype=torch.int64, device=device)
        self.taken = torch.zeros(size, dtype=torch.bool, device=device)
        self.upper, self.lower = self.serving.new_zeros(size), self.serving.new_full((size,), -torch.inf)
        self.errors = torch.full_like(self.serving, torch.nan)
        self.lists: PairLists | None = None
        if max_bytes >= size**2 * costs.dtype.itemsize:
            costs.remember()
        self.shorten_at = 2
        self._bound_all()

    def best(self) -> int | None:
        """The sample of the largest gain, None when there is no gain left."""
        self._look_at_the_foremost()
        open_ = (self.upper >= self.lower.max()).nonzero().flatten()
        if len(open_) > 1 or float(self.lower[open_]) <= 0:
            gains = self._exact_gains(open_)
            largest = float(gains.max())
            if largest <= 0:
                return None
            open_ = open_[gains >= largest * (1 - TIE)]
        return int(open_[0])

    def _look_at_the_foremost(self) -> None:
        """Renew the bounds of samples, the foremost first, until no old bound is ahead of the best new one. Gains only ever fall."""
        count = _LOOK
        while True:
            ahead = float(self.lower.max().clamp_min_(torch.finfo(torch.float64).min))
            old = self.upper.masked_fill(self.lower > -torch.inf, -torch.inf).topk(min(count, len(self.upper)))
            candidates = old.indices[old.values >= ahead]
            if not len(candidates):
                return
            for part in row_blocks(len(candidates), 1 if self.lists is not None else 24 * len(self.costs)):
                self._bound(candidates[part])
            count *= 2

    def _bound(self, candidates: Tensor) -> None:
        """New bounds on the gains of `candidates`."""
        new = candidates[self.errors[candidates].isnan()]
        if len(new):
            self.errors[new] = self._errors_of(new)
        gains = self._gains_of(candidates)
        error = self.errors[candidates] + _SUM_ERROR * torch.finfo(self.costs.dtype).eps * gains
        self.upper[candidates], self.lower[candidates] = gains + error, gains - error

    def _gains_of(self, candidates: Tensor) -> Tensor:
        """Gains of `candidates`, up to their errors."""
        if self.lists is None:
            costs = self.costs.block(candidates, slice(None))
            return (self.serving.to(costs.dtype) - costs).clamp_min_(0).sum(1).double()
        place, others, costs = self.lists.rows(candidates)
        return place.bincount((self.serving[others] - costs).clamp_min_(0), len(candidates))

    def _errors_of(self, candidates: Tensor) -> Tensor:
        """Bounds on the errors of the gains of `candidates`, from now on: the pairs that count only become fewer."""
        norms = self.costs.sq_norms
        if self.lists is None:
            costs = self.costs.block(candidates, slice(None))
            squares = self.costs.squared_errors(costs, norms[candidates, None], norms).mul_(costs < self.reach)
            squares[torch.arange(len(candidates), device=candidates.device), candidates] = 0
            return squares.sum(1).double().sqrt()
        place, others, costs = self.lists.rows(candidates)
        own = candidates[place]
        without = (others == own) | (costs >= self.reach[others])
        squares = self.costs.squared_errors(costs, norms[own], norms[others]).masked_fill_(without, 0)
        return place.bincount(squares, len(candidates)).double().sqrt()

    def _exact_gains(self, candidates: Tensor) -> Tensor:
        """Gains of `candidates` in fp64 from the samples that any of them could serve."""
        if self.costs.remembered:
            samples = (self.costs.block(candidates, slice(None)) < self.reach).any(0).nonzero().flatten()
        elif self.lists is None:
            samples = torch.arange(len(self.costs), device=self.costs.device)
        else:
            _, others, costs = self.lists.rows(candidates)
            samples = others[costs < self.reach[others]].unique()
        gains = self.serving.new_zeros(len(candidates))
        for part in row_blocks(len(samples), 32 * len(candidates)):
            some = samples[part]
            gains += (self.serving[some, None] - self.costs.exact(some, candidates)).clamp_min_(0).sum(0)
        return gains

    def take(self, pick: int, place: int) -> None:
        """Let `pick` serve those to whom it is nearer than what serves them."""
        samples, values = self._could_serve(pick)
        near = samples[values < self.reach[samples]]
        exact = self.costs.exact(near, torch.tensor([pick], device=near.device))[:, 0]
        closer = exact < self.serving[near]
        near, exact = near[closer], exact[closer]
        self.serving[near], self.served_by[near] = exact, place
        self.reach[near] = self.costs.below(exact)
        self.taken[pick] = True
        self.upper[pick] = -torch.inf
        self.lower.fill_(-torch.inf)
        if self.lists is not None:
            if place >= self.shorten_at:
                self.lists.shorten(self.reach)
                self.shorten_at = 2 * place
        elif not self.costs.remembered and (pairs := self._count_pairs()) <= self.max_pairs:
            self._list_pairs(pairs)
            self.shorten_at = 2 * place
        elif place == 0:
            self._bound_all()
            if self.costs.remembered:  # cheaper at once than for a few at a time
                everyone = torch.arange(len(self.costs), device=near.device)
                for part in row_blocks(len(everyone), 24 * len(everyone), 1 << 22):
                    self.errors[part] = self._errors_of(everyone[part])

    def _could_serve(self, pick: int) -> tuple[Tensor, Tensor]:
        """Samples that `pick` could serve, and what `Costs.block` gives for these."""
        one = torch.tensor([pick], device=self.costs.device)
        if self.lists is not None:
            return self.lists.rows(one)[1:]
        return torch.arange(len(self.costs), device=self.costs.device), self.costs.block(one, slice(None))[0]

    def _bound_all(self) -> None:
        """Bounds on all gains, not tight. Costs are symmetric: a tile above the diagonal serves its rows and its columns."""
        gains, serving = torch.zeros_like(self.upper), self.serving.to(self.costs.dtype)
        tall, wide = _TILE
        size = len(self.costs)
        for top in range(0, size, tall):
            rows = slice(top, min(top + tall, size))
            gains[rows] += (serving[rows] - self.costs.block(rows, rows)).clamp_min_(0).sum(1)
            for left in range(rows.stop, size, wide):
                columns = slice(left, min(left + wide, size))
                costs = self.costs.block(rows, columns)
                gains[rows] += (serving[columns] - costs).clamp_min_(0).sum(1)
                gains[columns] += (serving[rows, None] - costs).clamp_min_(0).sum(0)
        error = (size * self.costs.largest_squared_error) ** 0.5
        self._start_from(gains, error)

    def _start_from(self, gains: Tensor, error: float) -> None:
        """Bounds on all gains from `gains` that may be off by `error`, the more precise errors to be found where they matter."""
        self.upper = (gains * (1 + _SUM_ERROR * torch.finfo(self.costs.dtype).eps) + error).masked_fill_(self.taken, -torch.inf)
        self.errors.fill_(torch.nan)

    def _count_pairs(self) -> int:
        """An estimate, from some rows, of how many pairs still matter."""
        size = len(self.costs)
        rows = torch.arange(0, size, -(-size // _SAMPLED), device=self.costs.device)
        matters = sum(int((self.costs.block(some, slice(None)) < self.reach).sum()) for some in rows.split(32))
        return matters * size // len(rows)

    def _list_pairs(self, pairs: int) -> None:
        """List, for every sample, those to whom it may still be nearer than what serves them, and bound all gains by the way."""
        size, serving = len(self.costs), self.serving.to(self.costs.dtype)
        gains = torch.zeros_like(self.upper)
        self.lists = PairLists(size, pairs + pairs // 8, self.costs.dtype, self.costs.device)
        for rows in row_blocks(size, 16 * size):
            costs = self.costs.block(rows, slice(None))
            self.lists.append(costs, costs < self.reach)
            gains[rows] = (serving - costs).clamp_min_(0).sum(1).double()
        self._start_from(gains, (size * self.costs.largest_squared_error) ** 0.5)
