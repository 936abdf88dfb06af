"""What the figures of studies share: how cells are told apart, and how much a figure holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from fastqat.train.report.drawing import CYCLE, INK

MOST_LINES = len(CYCLE)
MOST_PANELS = 5
DASHES = ("--", ":", "-.", (0, (8, 2)))  # of lines without a colour
T = TypeVar("T")


def looks(names: Iterable[str], controls: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Name → colour and dashes of its line: black and broken for `controls`, training on all data, a colour for each of the others."""
    names, controls = list(names), set(controls)
    colors, dashes = cycle(CYCLE), cycle(DASHES)
    return {
        name: {"color": INK, "ls": next(dashes)} if name in controls else {"color": next(colors), "ls": "-"}  # one of each per name
        for name in names
    }


def with_room(items: Sequence[T], ranks: Sequence[tuple[bool, bool, float]], most: int = MOST_LINES) -> list[T]:
    """The items that a panel has room for, in the order given: controls, which need no colour, and the `most` others of the highest rank.

    Example:
        >>> with_room(["a", "b", "c"], [(False, False, 1.0), (True, False, 3.0), (False, True, 0.5)], most=1)
        ['b', 'c']
    """
    best = sorted(range(len(items)), key=lambda place: ranks[place], reverse=True)
    return [items[place] for place in sorted(best[: most + sum(is_control for is_control, *_ in ranks)])]


def left_out(lines: int, panels: int) -> str:
    """What a figure had no room for, in words; empty where it shows all."""
    text = f" The {lines} least accurate lines are left out for room; the table has them." if lines else ""
    return text + (f" Shown are {MOST_PANELS} of {MOST_PANELS + panels} settings; the table has them all." if panels else "")


def log_axis(panel: Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5."""
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
