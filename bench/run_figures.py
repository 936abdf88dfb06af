"""Figures from the rows of single runs: how selections and scores drift, and slices of the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fastqat.train.report.drawing import CYCLE, INK, Drawing, new_figure

from .score_drift import CHANCE
from .study_look import DASHES
from .study_rows import Row
from .study_words import told

KEPT = {"kept from previous": "Kept from the previous selection (%)", "ever": "Part of the pool ever selected (%)"}
SCORES = ("evs", "ds", "res", "acs", "quarc")  # the first of these that have rows get a panel


def colors_of(rows: Sequence[Row]) -> dict[str, str]:
    """Colours of the cells that a figure has room for, in the order of the rows."""
    return dict(zip(dict.fromkeys(row["cell"] for row in rows), CYCLE, strict=False))


def means(rows: Iterable[Row], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of column `x`, and the mean of column `y` over the rows that have each; both ``[values]``."""
    points: dict[float, list[float]] = {}
    for row in rows:
        points.setdefault(float(row[x]), []).append(float(row[y]))
    places = sorted(points)
    return np.array(places), np.array([np.nanmean(points[place]) for place in places])


def drift_figure(rows: Sequence[Row]) -> Drawing | None:
    """Overlap of successive selections, part of the pool ever used, and rank correlation of scores, a line per cell; None without rows."""
    if not rows:
        return None
    measures = {row["measure"] for row in rows}
    ranks = [f"rank {name}" for name in SCORES if f"rank {name}" in measures][:2]
    titles = {**KEPT, **{name: f"Rank correlation of {name[5:].upper()} with the selection before" for name in ranks}}
    figure, axes = new_figure(3.2 * (len(titles) // 2 + len(titles) % 2), columns=2, rows=-(-len(titles) // 2))
    for panel in axes.flat[len(titles) :]:
        panel.set_axis_off()
    for panel, (measure, title) in zip(axes.flat, titles.items(), strict=False):
        factor = 1 if measure in ranks else 100
        _lines(panel, colors_of(rows), [row for row in rows if row["measure"] == measure], "epoch", "value", factor)
        if measure in ranks:
            panel.set_ylim(min(0.0, panel.get_ylim()[0]), 1.03)
        if measure == "kept from previous":
            for chance in sorted({round(100 * float(row["value"]), 1) for row in rows if row["measure"] == CHANCE}):
                panel.axhline(chance, color=INK, lw=1, ls=":")
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("epoch of the selection, from 0")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure, axes[0, 0])
    seeds, lines = len({row["seed"] for row in rows}), len({row["cell"] for row in rows}) - len(colors_of(rows))
    return Drawing(
        figure,
        f"Study {rows[0]['study']}, mean over {seeds} seeds: how much of a selection was in the one before (dotted: what two random draws "
        "share, a line for each size), how much of the pool has been selected at least once, and whether the scores still rank the samples "
        "as they did: 1 the same order, 0 an unrelated one." + f" {lines} more cells are left out for room." * (lines > 0),
    )


def _lines(panel: Axes, colors: Mapping[str, str], rows: Sequence[Row], x: str, y: str, factor: float = 1, **look: Any) -> None:
    """A line for each cell that has rows; `colors` by cell."""
    for cell, color in colors.items():
        own = [row for row in rows if row["cell"] == cell]
        if own:
            places, values = means(own, x, y)
            panel.plot(places, factor * values, color=color, label=cell, **{"marker": "o", "ms": 3, "lw": 1.5, **look})


def _legend(figure: Any, panel: Axes) -> None:
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8)


def landscape_figure(rows: Sequence[Row]) -> Drawing | None:
    """Loss and accuracy along random directions, a line per cell for the quantized nets, and one for float nets of the same data; None
    without rows."""
    if not rows:
        return None
    figure, axes = new_figure(3.8, columns=2)
    for panel, column, factor in ((axes[0, 0], "cross_entropy", 1), (axes[0, 1], "accuracy", 100)):
        for (name, own), dashes in zip(_floats(rows).items(), cycle(DASHES), strict=False):
            places, values = means(own, "place", column)
            panel.plot(places, factor * values, color=INK, ls=dashes, lw=1.5, label=name)
        _lines(panel, colors_of(rows), [row for row in rows if row["net"] == "quantized"], "place", column, factor, marker=None)
        panel.set_xlabel("step along the direction, in norms of each filter")
    axes[0, 0].set_title("Cross-entropy", fontsize=9)
    axes[0, 1].set_title("Accuracy (%)", fontsize=9)
    _legend(figure, axes[0, 0])
    facts = rows[0]
    counts = (len({row["direction"] for row in rows}), len({row["seed"] for row in rows}))
    return Drawing(
        figure,
        f"Study {facts['study']}: loss and accuracy on {facts['samples']} samples of the pool along {counts[0]} random filter-normalised "
        f"directions, mean over them and over {counts[1]} seeds; at 0 the trained weights.",
    )


def _floats(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Name → rows of the float nets that are of one data set, architecture and share of wrong labels."""
    own = [row for row in rows if row["net"] == "float"]
    names = [name for name in ("data", "model", "label_noise") if len({row[name] for row in own}) > 1]
    found: dict[str, list[Row]] = {}
    for row in own:
        found.setdefault(", ".join(["float", *(told(name, row[name]) for name in names)]), []).append(row)
    return found
