"""Writes the README's tables of speed and accuracy from the rows in bench/results, and from nothing else.

python -m bench.tables
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from fastqat._files import read_csv, write_atomic

from .registry import CASES
from .rows import RESULTS
from .speed_tables import Row, speed_tables

ROOT = Path(__file__).resolve().parent.parent


def read(name: str) -> list[Row]:
    return read_csv(RESULTS / name)


def speed_rows() -> list[Row]:
    """The rows of the cases that there are; those of cases that were given up stay in the file."""
    names = {case.name for case in CASES}
    return [row for row in read("bench.csv") if row["case"] in names]


def cell(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def accuracy_table(rows: list[Row]) -> str:
    """One line per data set, bits and loss; a column per way of choosing data."""
    ways = ("none", "rs2", "acs")
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["dataset"], row["model"], row["qconfig"].upper(), row["loss"]][row["select"]].append(row)
    lines = [
        "| data | model | float | bits | loss | all data | RS2 tenth | ACS tenth | ACS − RS2, paired | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, model, bits, loss), group in sorted(groups.items()):
        if set(group) != set(ways):
            continue
        accuracy = {way: {row["seed"]: float(row["test_accuracy"]) for row in group[way]} for way in ways}
        seeds = sorted(set.intersection(*(set(of) for of in accuracy.values())))
        floats = [float(row["float_accuracy"]) for row in group["rs2"] if row["seed"] in seeds]
        paired = [accuracy["acs"][seed] - accuracy["rs2"][seed] for seed in seeds]
        cells = [cell([accuracy[way][seed] for seed in seeds]) for way in ways]
        difference = f"{100 * mean(paired):+.1f}" + (f" ± {100 * stdev(paired):.1f}" if len(paired) > 1 else "")
        lines.append(f"| {data} | {model} | {cell(floats)} | {bits} | {loss} | {' | '.join(cells)} | {difference} | {len(seeds)} |")
    return "\n".join(lines)


def put(text: str, name: str, table: str) -> str:
    """`text` with `table` between the markers of section `name`."""
    pattern = re.compile(rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no section <!-- {name}: ... --> ... <!-- /{name} -->")
    return pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)


def main() -> None:
    readme = ROOT / "README.md"
    text = put(readme.read_text(), "speed", speed_tables(speed_rows()))
    write_atomic(readme, put(text, "accuracy", accuracy_table(read("accuracy.csv"))))


if __name__ == "__main__":
    main()
