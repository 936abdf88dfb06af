"""Figures of a study against a setting of it: accuracy over the share of the data or of wrong labels, and which labels were picked."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from matplotlib.transforms import offset_copy

from fastqat.train.report.drawing import INK, Drawing, new_figure

from .paired import MARGIN
from .study_groups import Comparison, Group, difference, groups_of, has_budget, labels, reference_of
from .study_look import MOST_PANELS, left_out, looks, with_room
from .study_rows import MEASURE, PICKED, Study, is_all_data
from .study_words import told, words

AXES = {"fraction": "share of the data selected (%)", "label_noise": "wrong labels (%)"}

# Label → (value on the axis, cell, its group), by value.
Points = list[tuple[float, str, Group]]
Series = dict[str, Points]


def against(study: Study, how: Comparison, axis: str) -> Drawing | None:
    """Accuracy, and the paired difference to the reference with its interval, against `axis`, a row per context; None for one value.

    With wrong labels on the axis, their share among the selected samples too.
    """
    found = [(context, series) for context, series in _across(study, how, axis).items() if any(len(line) > 1 for line in series.values())]
    if not found:
        return None
    contexts = found[:MOST_PANELS]
    picked = axis == "label_noise" and any(study.numbers(cell, PICKED) for cell in study.cells)
    figure, axes = new_figure(3.2 * len(contexts), columns=2 + picked, rows=len(contexts))
    lines = 0
    for panels, (context, series) in zip(axes, contexts, strict=True):
        shown = _with_room(study, series)
        lines += len(series) - len(shown)
        for draw, panel in zip((_accuracies, _differences, _picks), panels, strict=False):
            _lines(panel, study, shown, draw)
            _axis(panel, axis, [100 * value for line in shown.values() for value, _, _ in line])
        _titles(panels, context, how)
        panels[-1].legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return Drawing(figure, _caption(study, how, axis, picked) + left_out(lines, len(found) - len(contexts)))


def _across(study: Study, how: Comparison, axis: str) -> dict[str, Series]:
    """Context without `axis` → its series."""
    contexts: dict[str, Series] = {}
    for group in groups_of(study, how):
        if axis not in group.context:
            return {}
        rest = words(group.context, [name for name in group.context if name != axis])
        names = labels(study, group, how)
        for cell in group.cells:
            contexts.setdefault(rest, {}).setdefault(names[cell], []).append((float(group.context[axis] or 0), cell, group))
    return {rest: {name: sorted(line, key=lambda one: one[0]) for name, line in series.items()} for rest, series in contexts.items()}


def _with_room(study: Study, series: Series) -> Series:
    """The series that a panel has room for: all data, the references, then the most accurate."""

    def rank(line: Points) -> tuple[bool, bool, float]:
        is_reference = any(cell in group.references for _, cell, group in line)
        return is_all_data(study, line[0][1]), is_reference, mean(mean(study.numbers(cell, MEASURE)) for _, cell, _ in line)

    return {name: series[name] for name in with_room(list(series), [rank(line) for line in series.values()])}


Draw = Callable[[Axes, Study, Points, dict[str, Any]], None]


def _lines(panel: Axes, study: Study, series: Series, draw: Draw) -> None:
    styles = looks(series, [name for name, line in series.items() if is_all_data(study, line[0][1])])
    for name, line in series.items():
        draw(panel, study, line, {**styles[name], "lw": 1.5, "ms": 4, "label": name})


def _accuracies(panel: Axes, study: Study, line: Points, look: dict[str, Any]) -> None:
    panel.plot([100 * value for value, _, _ in line], [100 * mean(study.numbers(cell, MEASURE)) for _, cell, _ in line], marker="o", **look)


def _differences(panel: Axes, study: Study, line: Points, look: dict[str, Any]) -> None:
    """Nothing for all data but at the budget of the fraction, as its distance would hide those of the others; lines stand side by side, for
    intervals to be told apart."""
    found = []
    for value, cell, group in line:
        reference = reference_of(study, group, cell)
        is_control = is_all_data(study, cell) and not has_budget(study, group, cell)
        one = None if reference is None or is_control else difference(study, cell, reference, MEASURE)
        if one is not None:
            found.append((100 * value, one.mean, one.half if one.freedom else 0.0))
    if found:
        x, means, halves = np.array(found).T
        aside = offset_copy(panel.transData, panel.figure, x=2.5 * (len(panel.containers) - 3), units="points")
        panel.errorbar(x, means, yerr=halves, marker="o", capsize=2, elinewidth=1, transform=aside, **look)
        panel.update_datalim(np.column_stack([np.tile(x, 2), np.concatenate([means - halves, means + halves])]))
        panel.autoscale_view()


def _picks(panel: Axes, study: Study, line: Points, look: dict[str, Any]) -> None:
    known = [(100 * value, 100 * mean(numbers)) for value, cell, _ in line if (numbers := study.numbers(cell, PICKED))]
    if known:
        panel.plot(*zip(*known, strict=True), marker="o", **look)


def _axis(panel: Axes, axis: str, values: list[float]) -> None:
    if min(values) > 0 and max(values) >= 8 * min(values):
        panel.set_xscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(np.unique(values), [f"{value:g}" for value in np.unique(values)])
    panel.set_xlabel(AXES.get(axis, axis))


def _titles(panels: np.ndarray, context: str, how: Comparison) -> None:
    """What each panel shows; the context stands in a line of its own above the first, as it may be wider than that."""
    texts = ("Test accuracy (%)", f"− {told(how.factor, str(how.reference))}, points", "Wrong labels among the selected (%)")
    for panel, text in zip(panels, texts, strict=False):
        panel.set_title(f"{context if panel is panels[0] else ''}\n{text}" if context else text, fontsize=9)
    panels[1].axhline(0, color=INK, lw=1)
    panels[1].axhline(-MARGIN, color=INK, lw=1, ls=":")
    if len(panels) > 2:
        ends = panels[0].get_xlim()
        panels[2].plot(ends, ends, color=INK, lw=1, ls=":")


def _caption(study: Study, how: Comparison, axis: str, picked: bool) -> str:
    text = (
        f"Study {study.name}: test accuracy (mean over seeds) against the {AXES.get(axis, axis)}, and the difference to "
        f"{told(how.factor, str(how.reference))}, paired by seed, with its 95 % interval (dotted: −{MARGIN} points)."
    )
    chance = " Last: how many of the selected samples have a wrong label; on the dotted line as many as by chance."
    return text + chance * picked
