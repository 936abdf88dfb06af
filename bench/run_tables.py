"""Tables from the rows of single runs: how selections and scores drift."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

from .run_figures import SCORES
from .score_drift import CHANCE
from .study_rows import Row
from .study_tables import spread, table


def drift_table(rows: Sequence[Row]) -> str:
    """A line per cell: the share of a selection that was in the one before against that of two random draws, and rank correlations."""
    cells: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in sorted(rows, key=lambda row: (row["cell"], int(row["epoch"]))):
        if not math.isnan(value := float(row["value"])):
            cells[row["cell"]][row["measure"]][row["seed"]].append(value)
    measures = {row["measure"] for row in rows}
    ranks = [name for name in SCORES if f"rank {name}" in measures]
    head = ["cell", "seeds", "selections", "kept at the next (%)", "by chance (%)", "kept from the first (%)", "pool ever selected (%)"]
    lines = [[cell, *_drift_part(found, ranks)] for cell, found in cells.items()]
    intro = (
        f"Study `{rows[0]['study']}`: what a selection shares with the one before and with the first, means over the selections of a run, "
        "± standard deviation over seeds; by chance: of two random draws of that size. Rank: Spearman's correlation of the score over the "
        "pool with the score at the selection before, 1 the same order, 0 an unrelated one."
    )
    return "\n".join([intro, "", table([*head, *(f"rank of {name.upper()}" for name in ranks)], lines)])


def _drift_part(found: dict[str, dict[str, list[float]]], ranks: Sequence[str]) -> list[str]:
    """The columns of one cell, from measure → seed → values in the order of the epochs."""
    kept = found["kept from previous"]
    counts = sorted({len(values) + 1 for values in kept.values()})
    shares = [
        spread([mean(values) for values in found[name].values()], digits=1) for name in ("kept from previous", CHANCE, "kept from first")
    ]
    ever = spread([values[-1] for values in found["ever"].values()], digits=1)
    means = [spread([mean(values) for values in found[f"rank {name}"].values()], factor=1) for name in ranks]
    return [str(len(kept)), "–".join(map(str, counts[:: len(counts) - 1 or 1])), *shares, ever, *means]
