"""Rows of studies that were never run, in the columns of `fastqat train --study`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastqat._bench.study_rows import Row, Study, study_of
from fastqat._files import write_csv

FLOAT_SEEDS = 3
PLAIN = {"data": "cifar10", "model": "resnet8", "qconfig": "w2a32", "select": "rs2", "fraction": "0.1", "loss": "ce", "epochs": "20"}
PLACE = {"commit": "c", "torch": "2.13.0", "cpu": "a CPU", "threads": "1"}


def rows_of(cell: str, gain: float, seeds: int = 5, **settings: Any) -> list[Row]:
    """A row per seed: accuracy 0.7 and what the float checkpoint and the seed add, and `gain` points with a spread of 0.1."""
    rows = []
    for seed in range(seeds):
        shared, own = np.random.default_rng(seed), np.random.default_rng([seed, len(cell), sum(map(ord, cell))])
        accuracy = 0.7 + 0.02 * (seed % FLOAT_SEEDS) + 0.005 * shared.normal() + 0.01 * gain + 0.001 * own.normal()
        results = {
            "seed": seed,
            "float_seed": seed % FLOAT_SEEDS,
            "float_accuracy": 0.8,
            "test_accuracy": f"{accuracy:.6g}",
            "val_accuracy": 0.7,
        }
        costs = {"gradient_steps": 700, "scoring_forwards": 900, "unique_samples": 4500, "seconds": 80, "selection_seconds": 8}
        row = {"study": "s", "cell": cell, **PLAIN, **settings, **results, **costs, "noisy_selected_mean": "", **PLACE} | settings
        rows.append({name: str(value) for name, value in row.items()})
    return rows


def curve_of(row: Mapping[str, str], pace: float, epochs: int = 8) -> list[Row]:
    """A curve that ends at the row's test accuracy: an epoch takes `pace` seconds."""
    end = float(row["test_accuracy"])
    shares = 1 - np.exp(-1.2 * np.arange(1, epochs + 1))
    facts = {name: row[name] for name in ("study", "cell", "seed")}
    values = [(epoch, 90 * (epoch + 1), pace * (epoch + 1), end * share / shares[-1]) for epoch, share in enumerate(shares)]
    return [{**facts, "epoch": str(e), "steps": str(s), "seconds": f"{t:g}", "val_accuracy": f"{a:.6g}"} for e, s, t, a in values]


def made(name: str = "s", *parts: Sequence[Row]) -> Study:
    """A study of those rows, without curves."""
    return study_of(name, [row for part in parts for row in part])


def write(folder: Path, name: str, rows: Sequence[Row], curves: Sequence[Row] = ()) -> None:
    """The files that `fastqat train --study` writes."""
    write_csv(folder / f"study_{name}.csv", list(rows[0]), [{**row, "study": name} for row in rows])
    if curves:
        write_csv(folder / f"study_{name}_curve.csv", list(curves[0]), [{**row, "study": name} for row in curves])
