"""How selections and scores of finished runs change from one selection to the next, as rows.

    python -m bench.score_drift runs/why/acs-seed0 runs/why/acs-seed1

Reads ``selections/`` of each run; a run that selected once or never has no rows. Rows of a run that is there already are replaced.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastqat.train.report.folder import SelectionRecord, read_run
from fastqat.train.report.selection_facts import kept_shares, rank_correlation

from .rows import RESULTS
from .run_facts import facts_of, write_rows_of

OUT = RESULTS / "drift.csv"
CHANCE = "chance"


def drift(records: Sequence[SelectionRecord]) -> Iterator[tuple[int, str, float]]:
    """(epoch, measure, value) of every selection after the first, in [0, 1] but for correlations, in [−1, 1].

    ``kept from previous``, ``kept from first``: share of the selected that were in that selection; ``ever``: share of the pool selected so
    far; ``chance``: the overlap of two random draws of this size; ``rank NAME``: Spearman's correlation of the score with that at the
    selection before; ``rank from first NAME``: with that at the first one to have it.
    """
    shares = kept_shares(records)
    for place, (before, record) in enumerate(pairwise(records), start=1):
        yield record.epoch, "kept from previous", shares["previous"][place] / 100
        yield record.epoch, "kept from first", shares["first"][place] / 100
        yield record.epoch, "ever", shares["ever"][place] / 100
        yield record.epoch, CHANCE, len(record.indices) / max(len(record.labels), 1)
        for name, values in record.scores.items():
            if name in before.scores:
                first = next(other for other in records if name in other.scores)
                yield record.epoch, f"rank {name}", rank_correlation(before.scores[name], values)
                yield record.epoch, f"rank from first {name}", rank_correlation(first.scores[name], values)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of one run directory, empty where it selected once or never."""
    run = read_run(path)
    if len(run.selections) < 2:
        return []
    facts = facts_of(run)
    return [{**facts, "epoch": epoch, "measure": name, "value": f"{value:.6g}"} for epoch, name, value in drift(run.selections)]


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    return write_rows_of(args.runs, args.out, rows_of)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
