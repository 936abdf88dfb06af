"""Seconds to an accuracy, from the curves of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .study_rows import Group, Row, Study, is_all_data

SHARE = 0.99  # of the accuracy that a full-data schedule comes to


@dataclass(frozen=True)
class Cost:
    """Of one cell, by seed: `seconds` until the accuracy was reached, None where it never was; `ratios` to the fastest full-data schedule,
    of the seeds where both reached it."""

    seconds: list[float | None]
    ratios: list[float]


def seconds_to(curve: Sequence[Row], accuracy: float) -> float | None:
    """Seconds at the end of the first validated epoch of at least `accuracy`; None where there is none.

    Example:
        >>> curve = [{"seconds": "10", "val_accuracy": "0.5"}, {"seconds": "20", "val_accuracy": "0.7"}]
        >>> seconds_to(curve, 0.6), seconds_to(curve, 0.8)
        (20.0, None)
    """
    return next((float(row["seconds"]) for row in curve if float(row["val_accuracy"]) >= accuracy), None)


def costs(study: Study, group: Group) -> dict[str, Cost]:
    """Cell → what it needed; empty where no run on all data has a curve.

    By seed: the goal is `SHARE` of the best final validation accuracy of the full-data schedules (all cells of the group that train on all
    data), and the fastest of them to reach it is what the others are compared with.
    """
    full = [cell for cell in group.cells if is_all_data(study, cell)]
    goals: dict[str, float] = {}
    for cell in full:
        for seed in study.cells[cell]:
            if curve := study.curves.get((cell, seed)):
                goals[seed] = max(goals.get(seed, 0.0), SHARE * float(curve[-1]["val_accuracy"]))
    needed = {cell: {seed: seconds_to(study.curves.get((cell, seed), []), goal) for seed, goal in goals.items()} for cell in group.cells}
    fastest = {seed: min(value for cell in full if (value := needed[cell][seed]) is not None) for seed in goals}
    found = {}
    for cell, by_seed in needed.items():
        known = {seed: value for seed, value in by_seed.items() if (cell, seed) in study.curves}
        if known:
            found[cell] = Cost(list(known.values()), [value / fastest[seed] for seed, value in known.items() if value is not None])
    return found
