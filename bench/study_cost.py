"""Seconds to an accuracy, from the curves of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from .study_groups import BUDGET, Group
from .study_rows import Row, Study, is_all_data

SHARE = 0.99  # of the accuracy that a full-data schedule comes to
PARTS = {1: "the full length", 4: "a quarter of it", 10: "a tenth of it"}  # the schedules on all data that the fastest is to be among


@dataclass(frozen=True)
class Reached:
    """When an accuracy was reached: after `seconds`, or at some time before where `is_bound`, as the first look at it found it reached."""

    seconds: float
    is_bound: bool = False


@dataclass(frozen=True)
class Cost:
    """Of one cell, by seed: when it `reached` the accuracy, None where it never did; `ratios` to the fastest full-data schedule.

    `ratios` are of the seeds where both reached it; `sign` says what they are: ``""`` as they stand, ``"<"`` or ``">"`` where some are
    bounds of that kind, ``"?"`` where they tell nothing, as both times are bounds. `gap`: seconds between two looks at the accuracy, the
    median.
    """

    reached: list[Reached | None]
    ratios: list[float]
    sign: str
    gap: float


def reached(curve: Sequence[Row], accuracy: float) -> Reached | None:
    """When `curve` first came to `accuracy` and was there at the next look too, on straight lines between looks; None where it never was.

    The last look needs no other after it. What was before the first look is not known: there the time is a bound.

    Example:
        >>> curve = [{"seconds": "10", "val_accuracy": "0.5"}, {"seconds": "20", "val_accuracy": "0.7"}]
        >>> reached(curve, 0.6), reached(curve, 0.8)
        (Reached(seconds=15.0, is_bound=False), None)
        >>> reached(curve, 0.4)
        Reached(seconds=10.0, is_bound=True)
    """
    points = [(float(row["seconds"]), float(row["val_accuracy"])) for row in curve]
    for place, (seconds, value) in enumerate(points):
        if value >= accuracy and all(after >= accuracy for _, after in points[place + 1 : place + 2]):
            if place == 0:
                return Reached(seconds, is_bound=True)
            start, low = points[place - 1]
            return Reached(start + (seconds - start) * (accuracy - low) / (value - low))
    return None


def costs(study: Study, group: Group) -> dict[str, Cost]:
    """Cell → what it needed; empty where no run on all data has a curve.

    By seed: the goal is `SHARE` of the best final validation accuracy of the full-data schedules (all cells of the context that train on
    all data), and the fastest of them to reach it is what the others are compared with.
    """
    cells = list(dict.fromkeys([*group.schedules, *group.cells]))
    full = [cell for cell in cells if is_all_data(study, cell)]
    goals: dict[str, float] = {}
    for cell in full:
        for seed in study.cells[cell]:
            if curve := study.curves.get((cell, seed)):
                goals[seed] = max(goals.get(seed, 0.0), SHARE * float(curve[-1]["val_accuracy"]))
    times = {
        cell: {seed: reached(study.curves[cell, seed], goals[seed]) for seed in goals if (cell, seed) in study.curves} for cell in cells
    }
    fastest = {seed: _fastest([times[cell].get(seed) for cell in full]) for seed in goals}
    return {cell: _cost(study, cell, by_seed, fastest) for cell, by_seed in times.items() if by_seed}


def _fastest(times: Sequence[Reached | None]) -> Reached:
    """The least of the times; a bound where one of them is, which may have been less than any other."""
    known = [one for one in times if one is not None]
    return Reached(min(one.seconds for one in known), any(one.is_bound for one in known))


def _cost(study: Study, cell: str, times: dict[str, Reached | None], fastest: dict[str, Reached]) -> Cost:
    pairs = [(one, fastest[seed]) for seed, one in times.items() if one is not None]
    signs = {_sign(one, least) for one, least in pairs} - {""}
    gap = median(gap for seed in times for gap in _gaps(study.curves[cell, seed]))
    ratios = [one.seconds / least.seconds for one, least in pairs]
    return Cost(list(times.values()), ratios, signs.pop() if len(signs) == 1 else "?" * bool(signs), gap)


def _sign(one: Reached, fastest: Reached) -> str:
    """How the quotient of two times stands to what they say; nothing is to be said of the fastest itself."""
    if one.is_bound and fastest.is_bound:
        return "" if one == fastest else "?"
    return "<" * one.is_bound + ">" * fastest.is_bound


def _gaps(curve: Sequence[Row]) -> list[float]:
    ends = [0.0, *(float(row["seconds"]) for row in curve)]
    return [end - start for start, end in pairwise(ends)]


def schedules_words(study: Study, group: Group) -> str:
    """The lengths of the runs on all data, and which of `PARTS` there is none of, up to a factor of `BUDGET`."""
    found = sorted({float(study.first(cell).get("epochs") or 0) for cell in group.schedules}, reverse=True)
    most = max([float(study.first(cell).get("epochs") or 0) for cell in group.references], default=found[0])
    lacking = [f"{words} ({most / part:g} epochs)" for part, words in PARTS.items() if not any(_near(most / part, one) for one in found)]
    told = f"Runs on all data: {', '.join(f'{one:g}' for one in found)} epochs."
    return told + (f" There is none of about {' or '.join(lacking)}: the fastest may be slower than it need be." if lacking else "")


def _near(wanted: float, epochs: float) -> bool:
    return wanted <= BUDGET * epochs and epochs <= BUDGET * wanted
