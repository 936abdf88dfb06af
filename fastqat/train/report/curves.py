"""Curves: the training of one run, and of several on top of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fastqat.train.report.drawing import BLUE, CYCLE, ORANGE, Drawing, new_figure
from fastqat.train.report.folder import Run, series


def _steps_of(run: Run) -> tuple[list[dict[str, Any]], np.ndarray, int]:
    """All metric rows, their place on the epoch axis, and how many are float epochs: those end at 0, quantized ones start at 1."""
    rows, floats = run.stage("float") + run.stage("qat"), len(run.stage("float"))
    return rows, np.arange(1, len(rows) + 1) - floats, floats


def _mark_stages(axes: Axes, floats: int, total: int, quantized: str) -> None:
    """Count the epochs of each stage from 1, and shade the float stage."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x if x > 0 else x + floats:.0f}")
    axes.set_xlim(0.5 - floats, total - floats + 0.5)
    if not floats or floats == total:
        return
    axes.axvspan(0.5 - floats, 0.5, color="#F3F5F7", zorder=0)
    for label, shift, align in (("float", -6, "right"), (quantized, 6, "left")):
        place: dict[str, Any] = {
            "xy": (0.5, 1.0),
            "xycoords": axes.get_xaxis_transform(),
            "xytext": (shift, 3),
            "textcoords": "offset points",
        }
        axes.annotate(label, **place, ha=align, va="bottom", fontsize=9, color="#52606D")


def _mark_selections(axes: Axes, rows: Sequence[dict[str, Any]], x: np.ndarray) -> bool:
    marks = x[series(list(rows), "reselected") == 1]
    if 0 < len(marks) <= 40:
        bottom: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "label": "samples selected again"}
        axes.plot(marks, np.full(len(marks), 0.015), "^", color="#7B8794", ms=5, **bottom)
    return 0 < len(marks) <= 40


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, **options: Any) -> None:
    """A line with points where there are few of them: a single epoch must show too."""
    known = np.isfinite(y)
    if known.any():
        few = {"marker": "o", "ms": 4} if known.sum() <= 30 else {}
        axes.plot(x[known], y[known], **{**few, **options})


def curves(run: Run) -> Drawing | None:
    """Loss and accuracy by epoch, float stage and quantized stage on one axis."""
    rows, x, floats = _steps_of(run)
    if not rows:
        return None
    figure, axes = new_figure(3.7, columns=2)
    marked = False
    for panel, key, factor, title in ((axes[0, 0], "loss", 1, "Loss"), (axes[0, 1], "accuracy", 100, "Accuracy (%)")):
        _line(panel, x, factor * series(rows, f"train_{key}"), color=ORANGE, lw=1.3, label="training")
        _line(panel, x, factor * series(rows, f"val_{key}"), color=BLUE, lw=2, label="validation")
        _mark_stages(panel, floats, len(rows), str(run.fact("qconfig", "quantized")))
        marked = _mark_selections(panel, rows, x)
        panel.set_xlabel("epoch")
        panel.set_title(title, pad=16)
    axes[0, 0].legend()
    return Drawing(figure, _curves_caption(floats, len(rows), marked))


def _curves_caption(floats: int, total: int, marked: bool) -> str:
    text = "Loss (lower is better) and accuracy (higher is better) after each epoch. "
    if floats and floats < total:
        text += "The grey part is the float model before quantization; the epochs of the quantized model count from 1 again. "
    if marked:
        text += "A triangle marks an epoch that began with a new selection. "
    return text + (
        "Validation samples are never trained on. The training curve is measured on the samples in use: when the hardest are selected, "
        "it can look worse than the validation curve."
    )


def overlay(runs: Sequence[Run]) -> Drawing | None:
    """Validation accuracy of the quantized stage of several runs, by gradient steps and by time."""
    figure, axes = new_figure(3.9, columns=2, sharey=True)
    drawn = False
    for run, color in zip(runs, CYCLE * (len(runs) // len(CYCLE) + 1), strict=False):
        rows = run.stage("qat")
        accuracy = 100 * series(rows, "val_accuracy")
        drawn |= bool(np.isfinite(accuracy).any())
        for panel, key in ((axes[0, 0], "steps"), (axes[0, 1], "seconds")):
            _line(panel, series(rows, key), accuracy, color=color, lw=1.8, label=run.name)
    if not drawn:
        return None
    for panel, key in ((axes[0, 0], "steps"), (axes[0, 1], "seconds")):
        _log_when_wide(panel, [series(run.stage("qat"), key) for run in runs])
    axes[0, 0].set(xlabel="gradient steps", ylabel="validation accuracy (%)", title="By gradient steps")
    axes[0, 1].set(xlabel="seconds", title="By time")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    caption = (
        "Validation accuracy of the quantized model while it trains; higher and further left is better. Left: the same number of steps "
        "means the same amount of training. Right: the clock, with the time spent on selecting samples included."
    )
    return Drawing(figure, caption)


def _log_when_wide(axes: Axes, columns: Sequence[np.ndarray]) -> None:
    """A logarithmic x axis where the longest run is four times the shortest or more, so that the short one can be seen."""
    ends = [column[np.isfinite(column)].max() for column in columns if np.isfinite(column).any()]
    if ends and max(ends) >= 4 * min(ends) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
