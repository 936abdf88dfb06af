"""Numbers about selections: which score led, what was chosen and dropped first, how much changed from one to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastqat.train.report.folder import SelectionRecord

PICTURES = 12  # of each kind, chosen first and dropped first


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..n of `values` [n], equal values sharing the mean of their ranks; NaN ranks last.

    Example:
        >>> average_ranks(np.array([0.5, 0.1, 0.5])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two score arrays [n]: 1 the same order, 0 unrelated, −1 reversed; NaN for a constant score.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 40.0]))
        1.0
    """
    a, b = (ranks - ranks.mean() for ranks in (average_ranks(first), average_ranks(second)))
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return round(float((a * b).sum()) / scale, 12) if scale else float("nan")


def leading_score(chosen: np.ndarray, scores: Mapping[str, np.ndarray]) -> tuple[str, int] | None:
    """The score that best tells the chosen from the rest, and +1 where high scores were chosen, −1 where low ones; None without scores.

    `chosen` bool [pool], each score [pool]. The measure is how far the mean rank of the chosen lies from the middle, so no list of
    score directions is needed.
    """
    best: tuple[float, str, int] | None = None
    for name, values in scores.items():
        ranks = average_ranks(np.asarray(values, dtype=float))
        lean = float(ranks[chosen].mean() - ranks.mean()) if chosen.any() else 0.0
        if best is None or abs(lean) > best[0]:
            best = (abs(lean), name, 1 if lean >= 0 else -1)
    return None if best is None else (best[1], best[2])


def chosen_and_dropped(indices: np.ndarray, scores: Mapping[str, np.ndarray], count: int) -> tuple[list[int], list[int]]:
    """The `count` samples chosen first and the `count` dropped first, as indices into the pool, the most extreme first."""
    chosen_first = [int(i) for i in indices[:count]]
    if not scores:
        return chosen_first, []
    pool = len(next(iter(scores.values())))
    chosen = np.zeros(pool, dtype=bool)
    chosen[indices] = True
    leader = leading_score(chosen, scores)
    assert leader is not None, "scores is not empty"
    name, sign = leader
    order = np.argsort(np.asarray(scores[name], dtype=float) * sign, kind="stable")
    return chosen_first, [int(i) for i in order[~chosen[order]][:count]]


def kept_shares(records: Sequence[SelectionRecord]) -> dict[str, list[float]]:
    """Per selection, in percent: kept from the previous one, kept from the first one, and the part of the pool that was ever selected."""
    first, previous = records[0].chosen, records[0].chosen
    ever = np.zeros_like(first)
    shares: dict[str, list[float]] = {"previous": [], "first": [], "ever": []}
    for record in records:
        chosen = record.chosen
        size = max(int(chosen.sum()), 1)
        ever |= chosen
        shares["previous"].append(100 * float((chosen & previous).sum()) / size)
        shares["first"].append(100 * float((chosen & first).sum()) / size)
        shares["ever"].append(100 * float(ever.mean()))
        previous = chosen
    shares["previous"][0] = float("nan")
    return shares


def class_shares(records: Sequence[SelectionRecord]) -> np.ndarray:
    """Selected part of each class in percent, fp64 [classes, selections]; NaN for a class without samples."""
    classes = int(max(record.labels.max() for record in records)) + 1
    table = np.full((classes, len(records)), np.nan)
    for column, record in enumerate(records):
        total = np.bincount(record.labels, minlength=classes)
        picked = np.bincount(record.labels[record.indices], minlength=classes)
        table[:, column] = np.where(total > 0, 100 * picked / np.maximum(total, 1), np.nan)
    return table
