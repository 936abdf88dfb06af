"""Writes the README's tables of speed and accuracy from the rows in bench/results, and from nothing else.

python -m bench.tables
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from fastqat._files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
Row = dict[str, str]


def read(name: str) -> list[Row]:
    with (RESULTS / name).open(newline="") as handle:
        return list(csv.DictReader(handle))


def latest(rows: list[Row]) -> list[Row]:
    """The newest full measurement of every case, in the order measured."""
    full = [row for row in rows if row["size"] == "full" and row["how"] == "bench"]
    newest = {row["case"]: row["time"] for row in sorted(full, key=lambda row: row["time"])}
    return [row for row in full if row["time"] == newest[row["case"]]]


def speed_table(rows: list[Row]) -> str:
    """One line per case and contender that was measured."""
    rows = [row for row in latest(rows) if row["p50_ms"]]
    machine = rows[0]
    lines = [
        f"Median of one run on {machine['cpu']} ({machine['cpu_level']}), {machine['threads']} threads, torch {machine['torch']}; "
        "`fastqat bench` measures the same on yours. The last two columns say what fastqat needs in proportion: below 1 it is ahead.",
        "",
        "| case | contender | ms | fastqat: time | fastqat: peak memory |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ours = row["contender"] == "fastqat"
        ratio = f"{float(row['time_ratio']):.3g} × " if row["time_ratio"] else ""
        memory = f"{float(row['memory_ratio']):.2f} × " if row["memory_ratio"] else ""
        name = "**fastqat**" if ours else row["contender"]
        lines.append(f"| {row['case']} | {name} | {float(row['p50_ms']):.3g} | {ratio}| {memory}|")
    return "\n".join(lines)


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
    text = put(readme.read_text(), "speed", speed_table(read("bench.csv")))
    write_atomic(readme, put(text, "accuracy", accuracy_table(read("accuracy.csv"))))


if __name__ == "__main__":
    main()
