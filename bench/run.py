"""`fastqat bench`: measure cases, print a table, add rows to a CSV file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastqat._errors import InputError

from .case import Case, Size
from .machine import Machine, this_machine
from .measure import measure
from .registry import chosen, left_out
from .rows import RESULTS, Row, append_rows


@dataclass(frozen=True)
class BenchArgs:
    """Measure fastqat against a copy, eager and compiled LSQ, torch's own ops, and other packages that are installed."""

    quick: bool = False
    """The main cases with few rounds: about a minute."""
    filter: str | None = None
    """Only cases with this in their name, such as lsq or step."""
    out: Path | None = None
    """CSV file that the rows are added to; default: bench/results/bench.csv in a source tree, else none."""
    threads: int | None = None
    """CPU threads; default: torch's."""


def main(quick: bool = False, filter: str | None = None, out: Path | None = None, threads: int | None = None) -> list[Row]:
    """Measure, print and keep; the arguments are those of `BenchArgs`.

    Raises:
        InputError: no case matches `filter`, or `threads` is not positive.
        OSError: `out` cannot be written.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1; got {threads}")
    if threads is not None:
        torch.set_num_threads(threads)
    cases, target, machine = chosen(filter, quick=quick), out or default_out(), this_machine()
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(_machine_line(machine))
    rows: list[Row] = []
    for case in cases:
        rows += _one(case, "quick" if quick else "full", console)
        if target is not None:
            append_rows(target, [row for row in rows if row.case == case.name], machine)
    if skipped := left_out(filter):
        families = ", ".join(sorted({name.rpartition("/")[0] for name in skipped}))
        console.print(f"{len(skipped)} cases skipped, since torch sees no CUDA device: {families}", style="dim", highlight=False)
    if target is not None:
        console.print(f"rows added to {target}", highlight=False)
    return rows


def default_out() -> Path | None:
    """The results folder of a source tree; an installed package has none."""
    return RESULTS / "bench.csv" if (RESULTS.parent.parent / "pyproject.toml").is_file() else None


def _one(case: Case, size: Size, console: Console) -> list[Row]:
    with console.status(f"{case.name} ...") as status:
        rows = measure(case, size, lambda doing: status.update(f"{case.name}: {doing} ..."))
    console.print(case_table(case, rows))
    return rows


def _machine_line(machine: Machine) -> str:
    return (
        f"{machine.cpu}, {machine.cpu_level}, {machine.threads} thread{'s' if machine.threads > 1 else ''}, torch {machine.torch}, "
        f"fastqat {machine.fastqat}, commit {machine.commit[:10] or 'unknown'}"
    )


def case_table(case: Case, rows: list[Row]) -> Table:
    """One case as a table for people; the last column compares the candidate with the contender of the line."""
    table = Table(title=f"{case.name}: {case.about}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "ms", "p20 – p80", "GB/s", "of copy", "peak MiB", "fastqat takes", "goal"):
        table.add_column(heading, justify="left" if heading in ("", "goal") else "right", no_wrap=heading != "goal")
    for row in rows:
        if row.absent:
            table.add_row(row.contender, *[""] * 6, row.absent, style="dim")
            continue
        style = "bold" if row.contender == case.candidate.name else "red" if "MISSED" in row.goals else ""
        table.add_row(*_cells(row), style=style)
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.contender,
        _digits(row.p50_ms),
        f"{_digits(row.p20_ms)} – {_digits(row.p80_ms)}",
        "" if row.gbps is None else f"{row.gbps:.1f}",
        "" if row.copy_share is None else f"{100 * row.copy_share:.0f} %",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
        "" if row.time_ratio is None else _against(row.time_ratio, row.memory_ratio),
        row.goals,
    )


def _digits(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def _against(time_ratio: float, memory_ratio: float | None) -> str:
    """How the candidate compares with the contender of the line, in time and in peak bytes."""
    told = f"1/{1 / time_ratio:.3g} the time" if time_ratio < 0.5 else f"{time_ratio:.3f} × the time"
    return told if memory_ratio is None else f"{told}, {memory_ratio:.2f} × memory"
