"""Progress bars with throughput and time left, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Bar(Protocol):
    """What `progress_bar` yields."""

    def advance(self, n: int, **fields: object) -> None: ...


class _Rate(ProgressColumn):
    """Units per second since the start."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f} {task.fields['unit']}/s" if rate else f"- {task.fields['unit']}/s")


class _RichBar:
    def __init__(self, progress: Progress, task: int):
        self._progress, self._task = progress, task

    def advance(self, n: int, **fields: object) -> None:
        note = "  ".join(f"{key} {value}" for key, value in fields.items())
        self._progress.update(self._task, advance=n, note=note)  # type: ignore[arg-type]


class _NoBar:
    def advance(self, n: int, **fields: object) -> None:
        """Count nothing: the output is not a terminal or progress is off."""


@contextmanager
def progress_bar(description: str, total: int | None, *, unit: str = "samples", show: bool = True) -> Iterator[Bar]:
    """A bar over `total` units; ``bar.advance(n, loss="0.31")`` moves it and shows the fields. Silent when stderr is no terminal."""
    if not show or not sys.stderr.isatty():
        yield _NoBar()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _RichBar(progress, progress.add_task(description, total=total, unit=unit, note=""))
