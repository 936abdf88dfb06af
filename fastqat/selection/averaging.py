"""The mean of several score tables: EL2N and GraNd over checkpoints or runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastqat._errors import InputError
from fastqat.selection.table import ScoreTable


def average_scores(tables: Sequence[ScoreTable]) -> ScoreTable:
    """The mean of each score over tables of the same samples, such as those of several checkpoints or of several runs.

    EL2N and GraNd are defined as such means (Paul et al., NeurIPS 2021): score the data once with each model and average.

    Args:
        tables: at least one, all with the same scores and labels. Features are not averaged and left out.

    Returns:
        `ScoreTable` with the means, taken in fp64.

    Raises:
        InputError: no table, or tables that differ in scores, samples or labels.

    Source: Paul et al., NeurIPS 2021 (arXiv 2107.07075), section 2: expectations over initialisations.

    Example:
        >>> import torch
        >>> early, late = (ScoreTable({"el2n": torch.tensor(values)}) for values in ([1.0, 0.5], [0.5, 0.0]))
        >>> average_scores([early, late])["el2n"]
        tensor([0.7500, 0.2500])
    """
    if not tables:
        raise InputError("average_scores needs at least one table; score the data with each of the models")
    first = tables[0]
    for table in tables[1:]:
        if sorted(table) != sorted(first) or table.num_samples != first.num_samples:
            raise InputError(f"tables must have the same scores and samples to be averaged; got {first} and {table}")
        known = first.labels is not None and table.labels is not None
        if known and not torch.equal(first.labels, table.labels):  # type: ignore[arg-type]  # known: neither is None
            raise InputError("the tables have different labels, so they are not of the same samples; score one data set with all models")
    columns = {name: torch.stack([table[name].double() for table in tables]).mean(0) for name in first}
    return ScoreTable(columns, first.labels)
