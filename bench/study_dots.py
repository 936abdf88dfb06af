"""Dot plots of a study: the paired difference of every cell to its reference, with the interval and the seeds behind it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from fastqat.train.report.drawing import BLUE, GREY, INK, ORANGE, Drawing, new_figure

from .paired import BETTER, MARGIN, NOT_WORSE, OPEN, WORSE, Paired
from .study_groups import Comparison, Group, groups_of, labels, reference_of, seed_differences
from .study_rows import MEASURE, Study
from .study_tables import Compared, compared
from .study_words import told

COLORS = {BETTER: BLUE, NOT_WORSE: INK, WORSE: ORANGE, OPEN: "#7B8794"}


def dots(study: Study, how: Comparison) -> Drawing | None:
    """A panel per context, a line per cell; None where nothing can be compared."""
    every = groups_of(study, how)
    found = compared(study, every, MEASURE)
    shown = [(number, group) for number, group in enumerate(every) if any((number, cell) in found for cell in group.cells)]
    if not shown:
        return None
    heights = [sum((number, cell) in found for cell in group.cells) + 1.2 for number, group in shown]
    figure, axes = new_figure(0.9 + 0.24 * sum(heights), rows=len(shown), sharex=True, height_ratios=heights)
    for panel, (number, group) in zip(axes[:, 0], shown, strict=True):
        names = labels(study, group, how)
        cells = sorted((cell for cell in group.cells if (number, cell) in found), key=lambda cell: -found[number, cell].value.mean)
        for y, cell in enumerate(cells):
            _line(panel, y, study, group, cell, found[number, cell])
        _frame(panel, [names[cell] for cell in cells], group.name)
    axes[-1, 0].set_xlabel(f"test accuracy − that of {told(how.factor, str(how.reference))}, points")
    _limit(axes[0, 0], [one.value for one in found.values() if one.value.freedom])
    return Drawing(figure, _caption(study, how, sum(one.counts for one in found.values())))


def _line(panel: Axes, y: int, study: Study, group: Group, cell: str, found: Compared) -> None:
    """The seeds as small grey ticks, the mean with its interval above them."""
    value = found.value
    reference = reference_of(study, group, cell)
    seeds = seed_differences(study, cell, reference, MEASURE) if reference else {}
    panel.plot(list(seeds.values()), [y] * len(seeds), "|", ms=7, color=GREY, zorder=1)
    half = value.half if value.freedom else 0.0
    inside = None if found.stays or found.verdict == OPEN else "white"
    color = COLORS[found.verdict]
    panel.errorbar(value.mean, y, xerr=half, fmt="o", ms=5, lw=1.6, capsize=2.5, color=color, markerfacecolor=inside or color, zorder=2)


def _frame(panel: Axes, names: Sequence[str], title: str) -> None:
    panel.axvline(0, color=INK, lw=1)
    panel.axvline(-MARGIN, color=INK, lw=1, ls=":")
    panel.set_yticks(range(len(names)), list(names), fontsize=8)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(axis="y", visible=False)
    panel.set_title(title, fontsize=9)


def _limit(panel: Axes, values: Sequence[Paired]) -> None:
    """Cut the axis where an interval over few seeds would squeeze all the others: at four times the widest mean."""
    if values:
        most = max(1.0, 4 * max(abs(value.mean) for value in values))
        ends = max(-most, min(value.low for value in values)), min(most, max(value.high for value in values))
        room = 0.04 * (ends[1] - ends[0]) + 0.1
        panel.set_xlim(min(ends[0], -MARGIN) - room, max(ends[1], 0) + room)


def _caption(study: Study, how: Comparison, count: int) -> str:
    return (
        f"Study {study.name}: difference to {told(how.factor, str(how.reference))}, paired by seed. Ticks are seeds; the bar is the 95 % "
        "interval (over float models where there are two or more and that is wider; with one it is about that model alone). Blue: better; "
        f"black: not worse, that is above −{MARGIN} points (dotted line); orange: worse; grey: not resolved. "
        "A filled point stays what it is after Holm's correction over "
        f"the {count} comparisons (all data, the control, is not one of them and stays hollow, but for a run with about as many steps)."
    )
