"""Distances as one matrix product each: d(a, b) = own(a) + bias(b) − left(a)·right(b), and exactly, pair by pair."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.geometry.blocks import mean_row

Name = Literal["euclidean", "cosine", "symmetric_kl"]


class Right(NamedTuple):
    """The other side of the product: `matrix` ``[M, E]`` and `bias` ``[M]``, fp64."""

    matrix: Tensor
    bias: Tensor


class Factors(NamedTuple):
    """Both sides of the product for distances among samples, d(i, j) = own[i] + own[j] − left[i]·right[j], all fp64: `left` and `right`
    ``[N, E]``, `own` ``[N]``; `most` bounds ‖left[i]‖‖right[j]‖ + |own[i]| + |own[j]|.
    """

    left: Tensor
    right: Tensor
    own: Tensor
    most: float


class Euclidean:
    """½‖a − b‖² inside, ‖a − b‖ outside.

    The b side is taken from the mean of all samples, so that an offset that they share costs no digits. `single`: products may be in
    fp32.
    """

    single = True

    def __init__(self, features: Tensor):
        self.mean = mean_row(features)

    @property
    def width(self) -> int:
        """Number of terms of a product."""
        return len(self.mean)

    def left(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """Factor of the a side, ``[n, E]``."""
        return features.to(dtype)

    def right(self, features: Tensor) -> Right:
        """Factor and bias of the b side: b − m and ½‖b − m‖² + m·(b − m)."""
        rows = features.double() - self.mean
        return Right(rows, rows.square().sum(1) / 2 + rows @ self.mean)

    def own(self, features: Tensor) -> Tensor:
        """What the distance has of a alone: ½‖a − m‖²."""
        return (features.double() - self.mean).square_().sum(1) / 2

    def factors(self, features: Tensor) -> Factors:
        """Both sides, from the mean."""
        return self._both_sides(features.to(torch.float64, copy=True).sub_(self.mean))

    @staticmethod
    def _both_sides(rows: Tensor) -> Factors:
        own = rows.norm(dim=1).square_() / 2
        return Factors(rows, rows, own, 4 * float(own.max()))

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each row of `a` to the same row of `b`, ``[n]``, from differences in fp64: 0 for equal rows."""
        return (a.double() - b.double()).square_().sum(1) / 2

    def outside(self, values: Tensor) -> Tensor:
        """Distances as the user gets them."""
        return (2 * values).sqrt()


class Cosine(Euclidean):
    """1 − cos(a, b), which is ½‖a/‖a‖ − b/‖b‖‖²."""

    def __init__(self, features: Tensor):
        zero = (features == 0).all(1)
        if zero.any():
            raise InputError(
                f"metric='cosine' needs directions; {int(zero.sum())} rows are all zeros, the first is {int(zero.nonzero()[0])}; "
                "leave these out or use metric='euclidean'"
            )
        self.mean = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)

    @staticmethod
    def _unit(features: Tensor) -> Tensor:
        rows = features.double()
        return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)

    def left(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """Factor of the a side."""
        return self._unit(features).to(dtype)

    def right(self, features: Tensor) -> Right:
        """Factor and bias of the b side."""
        return super().right(self._unit(features))

    def own(self, features: Tensor) -> Tensor:
        """What the distance has of a alone."""
        return super().own(self._unit(features))

    def factors(self, features: Tensor) -> Factors:
        """Both sides."""
        return self._both_sides(self._unit(features))

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each row of `a` to the same row of `b`."""
        return super().pairs(self._unit(a), self._unit(b))

    def outside(self, values: Tensor) -> Tensor:
        """Distances as the user gets them."""
        return values


class SymmetricKL:
    """½ KL(p ‖ q) + ½ KL(q ‖ p) = ½ Σ (p − q)(log p − log q) of probabilities; none counts as less than fp32's least normal number.

    Logarithms of confident predictions are so large beside the distances that fp32 would leave too many of these open.
    """

    single = False

    def __init__(self, features: Tensor):
        if bool((features < 0).any()):
            raise InputError("metric='symmetric_kl' compares probabilities, which are ≥ 0; got negative features; apply softmax to logits")
        self.width = 2 * features.shape[1]

    @staticmethod
    def _rows(features: Tensor) -> tuple[Tensor, Tensor]:
        rows = features.double().clamp_min(torch.finfo(torch.float32).tiny)
        return rows, rows.log()

    def left(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """Factor of the a side: p and log p."""
        return torch.cat(self._rows(features), 1).to(dtype)

    def right(self, features: Tensor) -> Right:
        """Factor and bias of the b side: half of log q and q, and ½ Σ q log q."""
        q, log_q = self._rows(features)
        return Right(torch.cat((log_q, q), 1) / 2, (q * log_q).sum(1) / 2)

    def own(self, features: Tensor) -> Tensor:
        """What the distance has of p alone: ½ Σ p log p."""
        p, log_p = self._rows(features)
        return (p * log_p).sum(1) / 2

    def factors(self, features: Tensor) -> Factors:
        """Both sides."""
        p, log_p = self._rows(features)
        left, own = torch.cat((p, log_p), 1), (p * log_p).sum(1) / 2
        return Factors(left, torch.cat((log_p, p), 1) / 2, own, float(left.norm(dim=1).max() ** 2 / 2 + 2 * own.abs().max()))

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each row of `a` to the same row of `b`."""
        (p, log_p), (q, log_q) = self._rows(a), self._rows(b)
        return (p - q).mul_(log_p - log_q).sum(1) / 2

    def outside(self, values: Tensor) -> Tensor:
        """Distances as the user gets them."""
        return values


Metric = Euclidean | SymmetricKL
METRICS: dict[str, type[Euclidean] | type[SymmetricKL]] = {"euclidean": Euclidean, "cosine": Cosine, "symmetric_kl": SymmetricKL}


def make_metric(name: str, features: Tensor) -> Metric:
    """The metric called `name` for `features` ``[N, D]``; InputError with the known names otherwise."""
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}; choose one of {', '.join(METRICS)}")
    return METRICS[name](features)
