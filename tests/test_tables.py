"""The README's numbers are the rows of bench/results, and the tables say what the rows say."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastqat._bench import tables
from fastqat._bench.speed_tables import speed_tables

ROOT = Path(__file__).parent.parent


def test_readme_shows_the_rows_that_are_kept() -> None:
    text = (ROOT / "README.md").read_text()
    assert tables.put(text, "speed", speed_tables(tables.speed_rows())) == text
    assert tables.put(text, "accuracy", tables.accuracy_table(tables.read("accuracy.csv"))) == text


def test_accuracy_table_pairs_by_seed() -> None:
    common = {"dataset": "d", "model": "m", "qconfig": "w2a32", "loss": "ce", "float_accuracy": "0.9"}
    values = {"none": (0.8, 0.9), "rs2": (0.7, 0.6), "acs": (0.75, 0.66)}
    rows = [{**common, "select": way, "seed": str(i), "test_accuracy": str(v)} for way, pair in values.items() for i, v in enumerate(pair)]
    line = tables.accuracy_table([*rows, {**rows[0], "seed": "9"}]).splitlines()[-1]
    assert line == "| d | m | 90.0 ± 0.0 | W2A32 | ce | 85.0 ± 7.1 | 65.0 ± 7.1 | 70.5 ± 6.4 | +5.5 ± 0.7 | 2 |"


COMMON = {"cpu": "c", "cpu_level": "l", "threads": "2", "torch": "t", "how": "bench", "size": "full", "time": "2021", "device": ""}
NUMBERS = dict.fromkeys(("memory_ratio", "time_ratio", "copy_share", "goals", "absent"), "")


def row(case: str, contender: str, p50_ms: str = "", **numbers: str) -> dict[str, str]:
    """A row of results."""
    return {**COMMON, **NUMBERS, "case": case, "contender": contender, "p50_ms": p50_ms, **numbers}


def test_speed_tables_take_the_newest_full_measurement_of_a_case() -> None:
    old = row("a/b", "fastqat", "9", time="2020")
    new = [row("a/b", "fastqat", "2"), row("a/b", "peer", "4", time_ratio="0.5")]
    lines = speed_tables([old, *new, {**old, "time": "2022", "size": "quick"}]).splitlines()
    assert lines[0] == "Medians of one run on c (l), 2 threads, torch t. `fastqat bench` measures the same on yours."
    assert lines[-2:] == ["| a/b | **fastqat** | 2 | | |", "| a/b | peer | 4 | 0.5 × | |"]


def test_share_table_has_a_column_per_size_and_says_what_was_missed() -> None:
    rows = []
    for case, share, verdict in (("bf16-1M", "0.25", "MISSED"), ("fp32-64M", "0.95", "met"), ("fp32-1M", "0.8", "met")):
        rows += [row(f"forward/tensor-{case}", "fastqat", "2", copy_share=share)]
        rows += [row(f"forward/tensor-{case}", "x.clone()", "4", time_ratio="0.5", goals=f"≥ 0.3 of its bandwidth: {verdict}")]
    text = speed_tables(rows)
    assert "Goals: fp32 1M ≥ 0.3; fp32 64M ≥ 0.3; bf16 1M ≥ 0.3." in text
    assert "| fake_quantize | fp32 1M | fp32 64M | bf16 1M |\n|---|---|---|---|\n| forward, tensor | 0.80 | 0.95 | 0.25 (missed) |" in text
    assert text.splitlines()[-1] == "- forward/tensor-bf16-1M, x.clone(): goal ≥ 0.3 of its bandwidth, measured 0.25"


def test_peer_table_shows_multiples_and_who_is_ahead() -> None:
    rows = [row("lsq/tensor-4k", "fastqat", "0.5"), row("lsq/tensor-4k", "slow", "5", time_ratio="0.1")]
    rows += [
        row("lsq/tensor-4k", "fast", "0.25", time_ratio="2", goals="≤ 1 × its time: MISSED"),
        row("lsq/tensor-4k", "none", absent="gone"),
    ]
    text = speed_tables(rows)
    lines = ["| LSQ | tensor 4k |", "|---|---|", "| fastqat | 0.5 ms |", "| slow | 10 × |", "| fast | **0.5 ×** |", "| none | – |"]
    assert "\n".join(lines) in text
    assert "Not measured: none: gone (lsq/tensor-4k)." in text
    assert text.endswith("- lsq/tensor-4k, fast: goal ≤ 1 × its time, measured 2")


def test_step_table_is_in_proportion_to_the_float_step() -> None:
    ours, base = row("step/net", "fastqat", "110"), row("step/net", "float", "100", time_ratio="1.1", memory_ratio="1.05")
    lines = speed_tables([ours, base, row("step/net", "eager", "220", time_ratio="0.5", memory_ratio="0.7")]).splitlines()
    assert lines[-3:] == ["| float | 100 ms |", "| fastqat | 1.10 × (1.05) |", "| eager | 2.20 × (1.50) |"]


def test_norm_table_is_in_proportion_to_a_plain_step_and_leaves_other_cases_to_a_list() -> None:
    rows = [
        row("norms/pass-net", "fastqat", "90"),
        row("norms/pass-net", "forward + backward", "100", time_ratio="0.9", memory_ratio="1"),
        row("norms/pass-net", "peer", "180", time_ratio="0.5", memory_ratio="0.25"),
        row("norms/pass-net", "none", absent="gone"),
        row("norms/quant-net", "fastqat", "120"),
        row("norms/quant-net", "forward + backward", "100", time_ratio="1.2", memory_ratio="1.1"),
        row("norms/layer-3x3-64", "fastqat", "2", gflops="70.4"),
        row("norms/layer-3x3-64", "weight gradient", "1", gflops="140"),
        row("norms/grand_last", "fastqat", "1"),
    ]
    text = speed_tables(rows)
    lines = [
        "| norms | net | net, W4A4 |",
        "|---|---|---|",
        "| forward + backward | 100 ms | 100 ms |",
        "| fastqat | 0.90 × (1.00) | 1.20 × (1.10) |",
        "| peer | 1.80 × (4.00) | – |",
        "| none | – | – |",
    ]
    assert "\n".join([*lines, "", "Norms of single layers"]) in text
    assert "| layer | fastqat | weight gradient |\n|---|---|---|\n| 3x3, 64 | 70 | 140 |" in text
    assert "| norms/grand_last | **fastqat** | 1 | | |" in text and "Not measured: none: gone (norms/pass-net)." in text


def test_rows_of_a_gpu_have_tables_of_their_own() -> None:
    rows = [row("lsq/tensor-4k", "fastqat", "0.5"), row("gpu/lsq/tensor-fp32-16M", "fastqat", "0.1", device="a GPU")]
    text = speed_tables(rows)
    assert "2 threads, torch t; a GPU, torch t." in text
    assert "| LSQ | tensor 4k |" in text and "| LSQ | tensor fp32 16M |" in text


def test_missing_section_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no section"):
        tables.put("nothing here", "speed", "")
