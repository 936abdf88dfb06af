"""The accuracy table of the README: a grid of `fastqat train` runs, one CSV row each.

    python -m bench.accuracy --data cifar10 fashion-mnist --jobs 2

Cells are paired by seed: every method starts from the same float checkpoint of that seed. A finished cell is not run again, so the
grid can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastqat._files import write_atomic

from .rows import RESULTS

COLUMNS = ("dataset", "model", "qconfig", "select", "fraction", "loss", "seed", "epochs", "float_accuracy", "test_accuracy")
COSTS = (
    "val_accuracy",
    "gradient_steps",
    "scoring_forwards",
    "unique_samples",
    "seconds",
    "selection_seconds",
    "threads",
    "commit",
    "torch",
)
FLOAT_EPOCHS = {"cifar10": 12, "fashion-mnist": 6}
# "none" is the control that sees all data for about the same number of gradient steps as twelve epochs on a tenth.
METHODS = {"none": {"epochs": 1}, "rs2": {"epochs": 12, "fraction": 0.1}, "acs": {"epochs": 12, "fraction": 0.1, "interval": 4}}
VAL_INTERVAL = 6


def cells(data: list[str], models: list[str], seeds: int) -> list[dict[str, object]]:
    """Seeds outermost, so that a grid that is cut short still has whole seeds."""
    grid = itertools.product(range(seeds), data, models, ("w2a32", "w4a4"), ("ce", "kd"), METHODS)
    return [{"seed": s, "data": d, "model": m, "qconfig": q, "loss": loss, "select": how, **METHODS[how]} for s, d, m, q, loss, how in grid]


def run_name(cell: dict[str, object]) -> str:
    return "-".join(str(cell[key]) for key in ("data", "model", "qconfig", "loss", "select", "seed"))


def command(cell: dict[str, object], runs: Path) -> list[str]:
    fixed = {"float-epochs": FLOAT_EPOCHS[str(cell["data"])], "val-interval": VAL_INTERVAL, "threads": 1}
    flags = {**cell, **fixed, "runs": runs, "name": run_name(cell)}
    words = [f"--{key}={value}" for key, value in flags.items()]
    return [sys.executable, "-m", "fastqat", "train", *words, "--no-report", "--no-progress", "--resume"]


def run_cell(cell: dict[str, object], runs: Path) -> dict[str, object] | None:
    """Run one cell unless its summary is there; None when it failed (its output is printed)."""
    summary = runs / run_name(cell) / "summary.json"
    if not summary.exists():
        done = subprocess.run(command(cell, runs), capture_output=True, text=True)
        if done.returncode:
            print(f"{run_name(cell)} failed:\n{done.stderr[-2000:]}", flush=True)
            return None
    facts = json.loads(summary.read_text())
    print(f"{run_name(cell)}: {100 * facts['test_accuracy']:.2f} %", flush=True)
    return {key: facts[key] for key in (*COLUMNS, *COSTS)}


def save(results: list[dict[str, object]], path: Path) -> None:
    """Write all rows, sorted, in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *COSTS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(results, key=lambda row: tuple(str(row[key]) for key in COLUMNS[:7])))
    write_atomic(path, text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(FLOAT_EPOCHS), choices=list(FLOAT_EPOCHS))
    parser.add_argument("--model", nargs="+", default=["resnet8"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy.csv")
    args = parser.parse_args()
    todo = cells(args.data, args.model, args.seeds)
    # One cell per float model first: the others find the model in the cache.
    firsts = [cell for cell in todo if (cell["qconfig"], cell["loss"], cell["select"]) == ("w2a32", "ce", "rs2")]
    results: list[dict[str, object]] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for batch in (firsts, [cell for cell in todo if cell not in firsts]):
            for row in pool.map(lambda cell: run_cell(cell, args.runs), batch):
                if row:
                    results.append(row)
                    save(results, args.out)


if __name__ == "__main__":
    main()
