"""Orthogonal matching pursuit with weights that are not negative: a few rows whose weighted sum is a given vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from fastqat.selection.geometry.directions import MovingDirection

_RENEWED = 512
_VANISHED = 1e-10
"""A product with the residual below this share of the largest possible at the start is none."""


def matching_pursuit(features: Tensor, target: Tensor, budget: int, *, ridge: float) -> tuple[Tensor, Tensor]:
    """Add the row with the largest product with the residual, argmax_e g_e·r, and solve for the weights of all that were added.

    w = argmin ‖Σ_S w_i g_i − b‖² + λ‖w‖², w ≥ 0, and r = b − Σ_S w_i g_i, in fp64. −2 g_e·r is the slope of that objective along a weight
    that is still 0: when none of the rows left has a positive product, no further row can improve it, and the rest are the lowest
    indices with weight 0. Without a ridge that is so after D rows with a weight; with one, g_i·r = λ w_i for all that have a weight.
    Beyond the features it needs, in fp64, D values per pick and the square of the smaller of D and the budget (λ = 0: of the number of
    rows with a weight), and a copy of features that are not in fp32.

    Args:
        features: rows g, floating ``[N, D]``, on any device.
        target: b, ``[D]``.
        budget: how many rows, in [1, N].
        ridge: λ ≥ 0, in units of ‖g‖².

    Returns:
        Indices int64 ``[budget]`` in the order of picking and weights fp64 ``[budget]``, of which some may be 0.

    Source: GradMatch, Killamsetty et al., ICML 2021 (arXiv 2103.00123), algorithm 2; the solver is that of Lawson & Hanson, Solving Least
    Squares Problems, 1974, chapter 23.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.1]])
        >>> indices, weights = matching_pursuit(rows, torch.tensor([3.0, 2.0]), 2, ridge=0.0)
        >>> indices.tolist(), [round(w, 3) for w in weights.tolist()]
        ([2, 1], [1.0, 1.9])
    """
    target = target.double()
    search = MovingDirection(features)
    vanished = _VANISHED * search.largest * float(target.norm())
    solver: _ByFeatures | _ByRows = (_ByFeatures if ridge > 0 and budget > len(target) else _ByRows)(target, budget, ridge)
    picks: list[int] = []
    while len(picks) < budget:
        index, product = search.best(solver.residual)
        if product <= vanished:
            break
        search.take(index)
        picks.append(index)
        solver.add(features[index].double(), vanished)
    indices = torch.tensor(picks, dtype=torch.int64, device=features.device)
    rest = search.left()[: budget - len(picks)]
    return torch.cat([indices, rest]), torch.cat([solver.weights(), target.new_zeros(len(rest))])


class _Solver(ABC):
    """argmin over w ≥ 0 for the rows added so far: `passive` are those with a weight, without a bound; the others have 0."""

    def __init__(self, target: Tensor, budget: int, ridge: float):
        self.target, self.ridge = target, ridge
        self._rows = target.new_zeros(budget, len(target))
        self._passive = torch.zeros(budget, dtype=torch.bool, device=target.device)
        self._count = 0
        self.residual = target.clone()

    @property
    def rows(self) -> Tensor:
        """The rows added so far."""
        return self._rows[: self._count]

    @property
    def passive(self) -> Tensor:
        """Which of them have a weight."""
        return self._passive[: self._count]

    def add(self, row: Tensor, vanished: float) -> None:
        """One more row; afterwards no weight is negative, and no row without a weight has a product above `vanished`."""
        self._rows[self._count] = row
        self._count += 1
        wanted = self._count - 1
        for _ in range(3 * self._count):
            before = self.weights_later()
            if not self.enter(wanted):
                return
            self._stay_positive(before, wanted)
            idle = (~self.passive).nonzero().flatten()
            products = self.rows[idle] @ self.residual
            if not len(idle) or float(products.max()) <= vanished:
                return
            wanted = int(idle[products.argmax()])

    def _stay_positive(self, before: Callable[[], Tensor], entered: int) -> None:
        """Walk from the weights `before` towards the solution without bounds, and drop what reaches 0 on the way."""
        if self.surely_positive():
            return
        solution = self.weights()
        if bool((solution[self.passive] > 0).all()):
            return
        feasible = before()
        feasible[entered] = 0.0
        while bool((blocked := self.passive & (solution <= 0)).any()):
            step = (feasible / (feasible - solution).clamp_min(torch.finfo(torch.float64).tiny))[blocked].min()
            feasible = feasible + step * (solution - feasible)
            gone = blocked & (feasible <= 1e-14 * feasible.max())
            self.drop(gone if bool(gone.any()) else blocked)
            feasible = feasible.masked_fill(~self.passive, 0.0)
            solution = self.weights()

    @abstractmethod
    def weights(self) -> Tensor:
        """The solution without bounds for the passive rows, 0 for the others."""

    @abstractmethod
    def weights_later(self) -> Callable[[], Tensor]:
        """What gives the weights of now, of all rows, when it is called later."""

    def surely_positive(self) -> bool:
        """True where it is known without looking that all weights are positive."""
        return False

    @abstractmethod
    def enter(self, row: int) -> bool:
        """Make `row` passive; False where it depends on those that are."""

    @abstractmethod
    def drop(self, rows: Tensor) -> None:
        """Make `rows`, a mask, not passive."""


class _ByFeatures(_Solver):
    """For more rows than features and λ > 0: r = λ (λI + Σ g gᵀ)⁻¹ b and w_i = g_i·r / λ. The D × D inverse follows each row."""

    def __init__(self, target: Tensor, budget: int, ridge: float):
        super().__init__(target, budget, ridge)
        self._inverse = torch.eye(len(target), dtype=torch.float64, device=target.device) / ridge
        self._changes = 0
        self._longest = 0.0
        self._looked_at, self._lowest = self.residual, -torch.inf

    def weights(self) -> Tensor:
        products = (self.rows @ self.residual).masked_fill_(~self.passive, 0.0)
        self._looked_at, self._lowest = self.residual, float(products[self.passive].min()) if bool(self.passive.any()) else torch.inf
        return products / self.ridge

    def weights_later(self) -> Callable[[], Tensor]:
        residual, passive = self.residual, self.passive.clone()
        return lambda: torch.nn.functional.pad(self.rows[: len(passive)] @ residual * passive / self.ridge, (0, self._count - len(passive)))

    def surely_positive(self) -> bool:
        return self._lowest > self._longest * float((self.residual - self._looked_at).norm())

    def enter(self, row: int) -> bool:
        g = self._rows[row]
        self._longest = max(self._longest, float(g.norm()))
        self._lowest = min(self._lowest, float(g @ self._looked_at))
        self._passive[row] = True
        self._change(g, 1.0)
        return True

    def drop(self, rows: Tensor) -> None:
        for row in rows.nonzero().flatten().tolist():
            self._passive[row] = False
            self._change(self._rows[row], -1.0)

    def _change(self, g: Tensor, sign: float) -> None:
        """Sherman & Morrison; anew after some hundred changes, so that rounding does not pile up."""
        self._changes += 1
        if self._changes % _RENEWED == 0:
            active = self.rows[self.passive]
            system = active.T @ active
            system.diagonal().add_(self.ridge)
            self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
        else:
            u = self._inverse @ g
            self._inverse.addr_(u, u, alpha=-sign / (1.0 + sign * float(g @ u)))
        self.residual = self.ridge * (self._inverse @ self.target)


class _ByRows(_Solver):
    """For few rows: the Cholesky factor of A Aᵀ + λI over the passive rows A grows by a line for each."""

    def __init__(self, target: Tensor, budget: int, ridge: float):
        super().__init__(target, budget, ridge)
        self._order: list[int] = []
        self._factor = target.new_zeros(0, 0)
        self._solution = target.new_zeros(0)

    def weights(self) -> Tensor:
        return self._solution.new_zeros(self._count).index_copy_(0, self._places(), self._solution)

    def weights_later(self) -> Callable[[], Tensor]:
        now = self.weights()
        return lambda: torch.nn.functional.pad(now, (0, self._count - len(now)))

    def enter(self, row: int) -> bool:
        g, size = self._rows[row], len(self._order)
        line = torch.linalg.solve_triangular(self._factor[:size, :size], (self._active() @ g)[:, None], upper=False)[:, 0]
        own = float(g @ g) + self.ridge
        pivot = own - float(line @ line)
        if pivot <= 1e-13 * own:
            return False
        self._make_room(size + 1)
        self._factor[size, :size], self._factor[size, size] = line, pivot**0.5
        self._order.append(row)
        self._passive[row] = True
        self._solve()
        return True

    def drop(self, rows: Tensor) -> None:
        self._passive[: self._count] &= ~rows
        self._order = [row for row in self._order if self._passive[row]]
        active = self._active()
        system = active @ active.T
        system.diagonal().add_(self.ridge)
        self._factor[: len(active), : len(active)] = torch.linalg.cholesky(system)
        self._solve()

    def _places(self) -> Tensor:
        return torch.tensor(self._order, dtype=torch.int64, device=self._rows.device)

    def _active(self) -> Tensor:
        """The passive rows in the order of the factor; without a copy where all are."""
        return self.rows[: len(self._order)] if self._order == list(range(len(self._order))) else self._rows[self._places()]

    def _make_room(self, size: int) -> None:
        if size > len(self._factor):
            more = max(64, len(self._factor))
            self._factor = torch.nn.functional.pad(self._factor, (0, more, 0, more))

    def _solve(self) -> None:
        active, size = self._active(), len(self._order)
        self._solution = torch.cholesky_solve((active @ self.target)[:, None], self._factor[:size, :size])[:, 0]
        self.residual = self.target - active.T @ self._solution
