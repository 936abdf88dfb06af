"""What paired runs say: the mean difference with its interval, Holm's correction over a family, and a verdict in words.

Everything here is in the unit of its input; the tables and figures use points, 100 × accuracy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fastqat._errors import InputError

LEVEL = 0.95
MARGIN = 0.3  # points: a loss below it counts as none
SAME = 1e-3  # points: accuracies have six digits in the rows, so that equal differences may be read back this far apart
BETTER, NOT_WORSE, WORSE, OPEN = "better", f"not worse (within {MARGIN} points)", "worse", "not resolved"


@dataclass(frozen=True)
class Paired:
    """A mean of paired differences: its standard error with `freedom` degrees, from `pairs` pairs of `clusters` float checkpoints.

    `freedom` is 0 where the spread is not known.
    """

    mean: float
    error: float
    freedom: int
    pairs: int
    clusters: int

    @property
    def one_model(self) -> bool:
        """Whether all pairs started from one float checkpoint: the interval is over seeds then and says nothing about other checkpoints."""
        return self.clusters == 1

    @property
    def half(self) -> float:
        """Half the width of the interval at `LEVEL`; infinite where the spread is not known."""
        return _half(self.error, self.freedom)

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def p_value(self, at: float = 0.0) -> float:
        """Two-sided p of Student's t against a true mean of `at`; 1 where the spread is not known."""
        if not self.freedom:
            return 1.0
        if self.error == 0:
            return float(self.mean == at)
        return float(2 * stats.t.sf(abs(self.mean - at) / self.error, self.freedom))


def paired(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Paired:
    """The mean of `differences` with the wider of two intervals: over pairs, and over clusters where there are two or more.

    Over n pairs: standard error ``s / √n``, n − 1 degrees of freedom. Over G clusters C, pairs that started from the same float
    checkpoint and so are not independent: ``√(G / (G − 1) · Σ_C (Σ_{i ∈ C} (d_i − d̄))²) / n``, G − 1 degrees; with clusters of equal size
    this is the t interval of the cluster means. The spread is not known from one pair, nor from pairs that all differ by the same, other
    than nothing: a test set has so many steps only that a few seeds may well land on one.

    Args:
        differences: one per pair.
        clusters: the float checkpoint of each pair; None: all different.

    Raises:
        InputError: no differences, some that are not finite, or another number of clusters.

    Source: Cameron, Gelbach and Miller 2008, "Bootstrap-based improvements for inference with clustered errors", section 2.

    Example:
        >>> found = paired([0.2, 0.4, 0.6])
        >>> f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
        '0.40 [-0.10, 0.90]'
    """
    values = np.asarray(differences, dtype=float)
    groups = list(range(len(values))) if clusters is None else list(clusters)
    if not len(values) or not np.isfinite(values).all():
        raise InputError(f"differences must be finite numbers, at least one; got {list(differences)}")
    if len(groups) != len(values):
        raise InputError(f"clusters must be one per difference; got {len(groups)} for {len(values)}")
    mean, count = float(values.mean()), len(values)
    sums: dict[Hashable, float] = defaultdict(float)
    for group, value in zip(groups, values, strict=True):
        sums[group] += value - mean
    if count == 1 or (mean and np.ptp(values) <= SAME):
        return Paired(mean, math.inf, 0, count, len(sums))
    plain = float(values.std(ddof=1)) / math.sqrt(count), count - 1
    error, freedom = max([plain, *_clustered(list(sums.values()), count)], key=lambda found: _half(*found))
    return Paired(mean, error, freedom, count, len(sums))


def _clustered(sums: list[float], count: int) -> list[tuple[float, int]]:
    """Standard error and degrees of freedom from the clusters' sums of deviations; nothing for one cluster, whose sum is 0."""
    number = len(sums)
    if number == 1:
        return []
    return [(math.sqrt(number / (number - 1) * sum(value * value for value in sums)) / count, number - 1)]


def _half(error: float, freedom: int) -> float:
    return error * float(stats.t.ppf((1 + LEVEL) / 2, freedom)) if freedom else math.inf


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: the i-th smallest of m times m − i + 1, never below a smaller one's, at most 1.

    Rejecting where the adjusted value is below α keeps the chance of any false rejection in the family below α.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, most = [1.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        most = max(most, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = most
    return adjusted


def verdicts(family: Sequence[Paired]) -> list[str]:
    """What is shown of each difference, in points, at 5 % error over the whole family.

    better: above 0; not worse: above −0.3 points, whether below 0 or not; worse: below 0; else not resolved. With a family of one these are
    statements about the 95 % interval; with more, p values against 0 and against −0.3 are corrected by `holm`, each kind over the family.

    Example:
        >>> verdicts([paired([0.5, 0.6, 0.7]), paired([-0.05, 0.0, 0.05]), paired([-1.0, 1.0])])
        ['better', 'not worse (within 0.3 points)', 'not resolved']
    """
    from_zero, from_margin = holm([one.p_value() for one in family]), holm([one.p_value(-MARGIN) for one in family])
    return [_verdict(one.mean, *p) for one, *p in zip(family, from_zero, from_margin, strict=True)]


def _verdict(mean: float, p_zero: float, p_margin: float) -> str:
    alpha = 1 - LEVEL
    if mean > 0 and p_zero < alpha:
        return BETTER
    if mean > -MARGIN and p_margin < alpha:
        return NOT_WORSE
    return WORSE if mean < 0 and p_zero < alpha else OPEN
