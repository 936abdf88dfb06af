"""Figures of a study from its curves: validation accuracy by gradient steps and by seconds, and seconds to an accuracy."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fastqat.train.report.drawing import BLUE, GREY, INK, Drawing, new_figure

from .study_cost import SHARE, Cost, costs
from .study_groups import Comparison, Group, groups_of, labels
from .study_look import MOST_PANELS, left_out, log_axis, looks, with_room
from .study_rows import MEASURE, Study, is_all_data

X = {"steps": "gradient steps", "seconds": "seconds, selection included"}


def curves(study: Study, how: Comparison) -> Drawing | None:
    """Mean validation accuracy over seeds, a row per context: left by steps, right by seconds; None without curves."""
    drawn = {cell for cell, _ in study.curves}
    every = [group for group in groups_of(study, how) if any(cell in drawn for cell in group.cells)]
    if not every:
        return None
    groups = every[:MOST_PANELS]
    figure, axes = new_figure(3.0 * len(groups), columns=2, rows=len(groups))
    lines = 0
    for panels, group in zip(axes, groups, strict=True):
        cells, names = [cell for cell in group.cells if cell in drawn], labels(study, group, how)
        shown = with_room(cells, [_rank(study, group, cell) for cell in cells])
        lines += len(cells) - len(shown)
        styles = looks(shown, [cell for cell in shown if is_all_data(study, cell)])
        for panel, column in zip(panels, X, strict=True):
            for cell in shown:
                _curve(panel, study, cell, column, {**styles[cell], "label": names[cell]})
            log_axis(panel)
            panel.set_xlabel(X[column])
        panels[0].set_title(f"Validation accuracy (%){': ' if group.context else ''}{group.name}", fontsize=9)
        panels[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return Drawing(figure, _caption(study) + left_out(lines, len(every) - len(groups)))


def _rank(study: Study, group: Group, cell: str) -> tuple[bool, bool, float]:
    """All data, the references, then the most accurate."""
    return is_all_data(study, cell), cell in group.references, mean(study.numbers(cell, MEASURE))


def _curve(panel: Axes, study: Study, cell: str, column: str, look: dict[str, Any]) -> None:
    """The mean over the seeds that have an epoch, against their mean step or second."""
    by_epoch: dict[int, list[tuple[float, float]]] = {}
    for (other, _), rows in study.curves.items():
        for row in rows if other == cell else ():
            by_epoch.setdefault(int(row["epoch"]), []).append((float(row[column]), 100 * float(row["val_accuracy"])))
    points = np.array([np.mean(by_epoch[epoch], axis=0) for epoch in sorted(by_epoch)])
    panel.plot(points[:, 0], points[:, 1], lw=1.5, marker="o" if len(points) < 12 else None, ms=3, **look)


def _caption(study: Study) -> str:
    return (
        f"Study {study.name}: validation accuracy while the quantized model trains, mean over seeds, by gradient steps (left) and by the "
        "clock of the runs (right; the time spent on selecting is in it)."
    )


def seconds(study: Study, how: Comparison) -> Drawing | None:
    """Time to an accuracy over that of the fastest full-data schedule, a panel per context; None where no run on all data has a curve."""
    found = [
        (group, {cell: cost for cell, cost in costs(study, group).items() if cost.ratios and cost.sign != "?"})
        for group in groups_of(study, how)
    ]
    found = [(group, cells) for group, cells in found if cells]
    if not found:
        return None
    heights = [len(cells) + 1.2 for _, cells in found]
    figure, axes = new_figure(0.9 + 0.24 * sum(heights), rows=len(found), sharex=True, height_ratios=heights)
    for panel, (group, cells) in zip(axes[:, 0], found, strict=True):
        names = labels(study, group, how)
        order = sorted(cells, key=lambda cell: median(cells[cell].ratios))
        for y, cell in enumerate(order):
            _time(panel, y, cells[cell])
        panel.axvline(1, color=INK, lw=1)
        panel.set_yticks(range(len(order)), [names[cell] for cell in order], fontsize=8)
        panel.set_ylim(len(order) - 0.4, -0.6)
        panel.set_title(group.name, fontsize=9)
    log_axis(axes[0, 0])
    axes[-1, 0].set_xlabel(f"seconds to {100 * SHARE:g} % of the accuracy on all data, over those of the fastest full-data schedule")
    return Drawing(figure, _seconds_caption(study))


def _time(panel: Axes, y: int, cost: Cost) -> None:
    """The seeds grey, their median blue, whether that is a bound, and how many never came there."""
    panel.plot(cost.ratios, [y] * len(cost.ratios), "|", ms=7, color=GREY)
    middle = median(cost.ratios)
    panel.plot(middle, y, "o", ms=5, color=BLUE)
    missed = sum(one is None for one in cost.reached)
    told = (
        {"<": "or less", ">": "or more"}.get(cost.sign),
        f"{missed} of {len(cost.reached)} seeds never" * bool(missed),
    )
    if text := "; ".join(filter(None, told)):
        place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
        panel.annotate(text, (max(cost.ratios), y), **place)


def _seconds_caption(study: Study) -> str:
    return (
        f"Study {study.name}: time until validation comes to {100 * SHARE:g} % of the best final accuracy of a full-data schedule of "
        "the same seed, over the time of the fastest full-data schedule to get there; left of the line is faster. Or less, or more: it "
        "was reached before the first look at the cell, or at the full-data schedule. Cells that never did have no line, nor "
        "those where both are so."
    )
