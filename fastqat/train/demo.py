"""``fastqat demo``: digits, W2A32 on all data, on a random tenth and on the tenth that ACS picks; one table and one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastqat.train.config import TrainConfig
from fastqat.train.outcome import write_comparison_page
from fastqat.train.run import train
from fastqat.train.table import print_table

_BASE = TrainConfig(data="digits", model="resnet8", float_epochs=20, epochs=20, batch_size=16, lr=0.01, interval=5, report=False)
# run → what it shows, and its settings
STORIES = {
    "float": ("float weights, all data", replace(_BASE, qconfig="none", epochs=0)),
    "all": ("2-bit weights, all data", _BASE),
    "random-tenth": ("2-bit weights, a random tenth", replace(_BASE, select="random")),
    "acs-tenth": ("2-bit weights, the tenth that ACS picks", replace(_BASE, select="acs", report=True)),
}


def demo(runs: Path, seed: int = 0, threads: int = 1, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Train the four runs of `STORIES` anew in the folder `runs`, print a table, write ``comparison.html``; returns the summaries.

    Raises:
        DataError: scikit-learn, which has the digits, is not installed.
    """
    start, summaries = time.perf_counter(), []
    for name, (_, story) in STORIES.items():
        summaries.append(train(replace(story, runs=runs, name=name, seed=seed, threads=threads, overwrite=True), say=say))
    print_table(
        ("training", "test accuracy", "steps", "samples used", "seconds"), [*map(_line, STORIES.values(), summaries)], "digits, resnet8"
    )
    write_comparison_page([runs / name for name in STORIES], runs / "comparison.html", say)
    say(f"demo: {time.perf_counter() - start:.0f} s")
    return summaries


def _line(story: tuple[str, TrainConfig], summary: dict[str, Any]) -> tuple[str, ...]:
    if story[1].epochs == 0:
        return story[0], f"{100 * summary['test_accuracy']:.2f} %", "", "", ""
    numbers = f"{summary['gradient_steps']:,}", f"{summary['unique_samples']:,}", f"{summary['seconds']:.1f}"
    return story[0], f"{100 * summary['test_accuracy']:.2f} %", *numbers
