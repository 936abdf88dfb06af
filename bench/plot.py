"""One figure from rows of results, and from nothing else: ``python -m fastqat._bench.plot bench/results/bench.csv speed.png``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from fastqat._errors import InputError
from fastqat.train.report.drawing import BLUE, GREY, INK, ORANGE, new_figure, save_png, style

from .rows import COPY, read_rows

USAGE = "usage: python -m fastqat._bench.plot ROWS.csv [MORE.csv ...] FIGURE.png"


def latest(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Case → the rows of its last run; contenders that were not measured are left out."""
    cases: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        known = cases.setdefault(row["case"], [])
        if known and known[-1]["time"] != row["time"]:
            known.clear()
        known.append(row)
    return {case: [row for row in found if row["p50_ms"]] for case, found in cases.items()}


def plot(csv_paths: Sequence[Path], figure_path: Path) -> Path:
    """Draw the time of every contender over fastqat's, a panel per case, on a logarithmic axis; the losses too.

    Raises:
        InputError: the files hold no measured row.
    """
    cases = {case: [row for row in rows if row["time_ratio"]] for case, rows in latest(read_rows(csv_paths)).items()}
    cases = {case: rows for case, rows in cases.items() if rows}
    if not cases:
        raise InputError(f"no measured rows in {', '.join(map(str, csv_paths))}; run fastqat bench first")
    heights = [len(rows) + 0.6 for rows in cases.values()]
    with style():
        figure, axes = new_figure(0.8 + 0.33 * sum(heights), rows=len(cases), sharex=True, height_ratios=heights)
        for panel, (case, rows) in zip(axes[:, 0], cases.items(), strict=True):
            _draw(panel, case, rows)
        axes[0, 0].margins(x=0.12)
        axes[0, 0].set_xscale("log")
        axes[-1, 0].xaxis.set_major_formatter("{x:g}")
        axes[-1, 0].set_xlabel("time over fastqat's: to the right of the line fastqat is faster")
        facts = next(iter(cases.values()))[0]
        figure.suptitle(f"{facts['cpu']}, threads: {facts['threads']}, torch {facts['torch']}", fontsize=10)
        save_png(figure, figure_path)
    return figure_path


def _draw(panel: Axes, case: str, rows: Sequence[dict[str, str]]) -> None:
    """One bar per contender, from 1 to its time over fastqat's: a copy grey, a slower one blue, a faster one orange."""
    for y, row in enumerate(rows):
        times = 1 / float(row["time_ratio"])
        color = GREY if row["contender"] == COPY else BLUE if times > 1 else ORANGE
        panel.barh(y, times - 1, left=1, height=0.7, color=color)
        side = 1 if times > 1 else -1
        align = {1: "left", -1: "right"}[side]
        panel.annotate(f"{times:.3g}", (times, y), xytext=(4 * side, 0), textcoords="offset points", va="center", ha=align, fontsize=8)
    panel.axvline(1, color=INK, lw=1)
    panel.set_yticks(range(len(rows)), [row["contender"] for row in rows])
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.set_title(case, fontsize=9)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if len(argv) < 2:
        print(USAGE, file=sys.stderr)
        return 2
    print(plot([Path(path) for path in argv[:-1]], Path(argv[-1])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
