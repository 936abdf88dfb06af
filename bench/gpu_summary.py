"""A short table of measured rows, one line per case, losses first.

python -m bench.gpu_summary bench/results/gpu.csv
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from .rows import COPY, read_rows

Row = dict[str, str]


def summary(rows: Sequence[Row]) -> str:
    """Markdown: time, bandwidth and share of a copy of the candidate (first of its case), the best peer, and goals that were missed.

    Example:
        >>> ours = {"case": "a", "contender": "fastqat", "p50_ms": "2", "gbps": "3000", "copy_share": "0.9", "absent": ""}
        >>> peer = {"case": "a", "contender": "peer", "p50_ms": "4", "time_ratio": "0.5", "goals": "≥ 1.2 × faster: met", "absent": ""}
        >>> print(summary([ours, peer]))
        | case | ms | GB/s | of copy | best peer | fastqat takes | goals |
        |---|---|---|---|---|---|---|
        | a | 2 | 3000 | 90 % | peer | 0.5 × | met |
    """
    lines = [_line(name, list(case)) for name, case in groupby(rows, key=lambda row: row["case"])]
    lost = [line for line in lines if "MISSED" in line]
    head = ["| case | ms | GB/s | of copy | best peer | fastqat takes | goals |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *lost, *(line for line in lines if line not in lost)])


def _line(name: str, rows: list[Row]) -> str:
    ours, *others = rows
    if ours["absent"]:
        return f"| {name} | | | | | | {ours['absent']} |"
    peers = [row for row in others if not row["absent"] and row["contender"] != COPY]
    best = min(peers, key=lambda row: float(row["p50_ms"]), default=None)
    missed = [f"{row['contender']} {goal}" for row in others for goal in row.get("goals", "").split("; ") if "MISSED" in goal]
    share = f"{100 * float(ours['copy_share']):.0f} %" if ours.get("copy_share") else ""
    gbps = f"{float(ours['gbps']):.0f}" if ours.get("gbps") else ""
    peer, ratio = (best["contender"], f"{float(best['time_ratio']):.3g} ×") if best else ("", "")
    goals = "; ".join(missed) or ("met" if any(row.get("goals") for row in others) else "")
    return f"| {name} | {float(ours['p50_ms']):.3g} | {gbps} | {share} | {peer} | {ratio} | {goals} |"


if __name__ == "__main__":
    print(summary(read_rows([Path(name) for name in sys.argv[1:]])))
