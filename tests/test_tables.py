"""The README's numbers are the rows of bench/results, and the tables say what the rows say."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastqat._bench import tables

ROOT = Path(__file__).parent.parent


def test_readme_shows_the_rows_that_are_kept() -> None:
    text = (ROOT / "README.md").read_text()
    assert tables.put(text, "speed", tables.speed_table(tables.read("bench.csv"))) == text
    assert tables.put(text, "accuracy", tables.accuracy_table(tables.read("accuracy.csv"))) == text


def test_accuracy_table_pairs_by_seed() -> None:
    common = {"dataset": "d", "model": "m", "qconfig": "w2a32", "loss": "ce", "float_accuracy": "0.9"}
    values = {"none": (0.8, 0.9), "rs2": (0.7, 0.6), "acs": (0.75, 0.66)}
    rows = [{**common, "select": way, "seed": str(i), "test_accuracy": str(v)} for way, pair in values.items() for i, v in enumerate(pair)]
    line = tables.accuracy_table([*rows, {**rows[0], "seed": "9"}]).splitlines()[-1]
    assert line == "| d | m | 90.0 ± 0.0 | W2A32 | ce | 85.0 ± 7.1 | 65.0 ± 7.1 | 70.5 ± 6.4 | +5.5 ± 0.7 | 2 |"


def test_speed_table_takes_the_newest_full_measurement_of_a_case() -> None:
    common = {"cpu": "c", "cpu_level": "l", "threads": "2", "torch": "t", "how": "bench", "memory_ratio": ""}
    old = {**common, "case": "a", "contender": "fastqat", "p50_ms": "9", "time_ratio": "", "size": "full", "time": "2020"}
    new = [{**old, "p50_ms": "2", "time": "2021"}, {**old, "contender": "peer", "p50_ms": "4", "time_ratio": "0.5", "time": "2021"}]
    lines = tables.speed_table([old, *new, {**old, "time": "2022", "size": "quick"}]).splitlines()
    assert lines[-2:] == ["| a | **fastqat** | 2 | | |", "| a | peer | 4 | 0.5 × | |"]


def test_missing_section_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no section"):
        tables.put("nothing here", "speed", "")
