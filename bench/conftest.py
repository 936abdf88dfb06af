"""``pytest bench``: options, and the rows that are written at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .machine import this_machine
from .rows import Amounts, Measured, Row, append_rows, rows_of
from .run import default_out


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastqat bench")
    group.addoption("--bench-full", action="store_true", help="full sizes and rounds (default: quick)")
    group.addoption("--bench-out", type=Path, default=default_out(), help="CSV file that the rows are added to")


class Collected:
    """What the benchmarks of this session measured, by case."""

    def __init__(self) -> None:
        self.by_case: dict[str, tuple[Any, Amounts, str, dict[str, Measured], dict[str, str]]] = {}

    def of(self, case: Any, amounts: Amounts, size: str) -> tuple[dict[str, Measured], dict[str, str]]:
        """The measurements of `case` so far, and the reasons of what was not measured."""
        return self.by_case.setdefault(case.name, (case, amounts, size, {}, {}))[3:]

    def rows(self) -> list[Row]:
        return [
            row
            for case, amounts, size, measured, absent in self.by_case.values()
            for row in rows_of(case, amounts, size, "pytest", measured, absent)
        ]


COLLECTED = pytest.StashKey[Collected]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COLLECTED] = Collected()


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> Collected:
    return request.config.stash[COLLECTED]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Goals and where the rows went. A missed goal is told, not failed: a busy machine is no defect of the code."""
    rows = config.stash[COLLECTED].rows()
    goals = [f"{row.case}: {row.contender} {row.goals}" for row in rows if row.goals]
    if goals:
        terminalreporter.section("goals")
        terminalreporter.write_line("\n".join(goals))
    out = config.getoption("--bench-out")
    if rows and out is not None:
        append_rows(out, rows, this_machine())
        terminalreporter.write_line(f"rows added to {out}")
