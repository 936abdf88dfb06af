"""The end of a pass: everything together, in data-set order, checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastqat._errors import DataError, InputError
from fastqat.selection.scores.registry import WholePass
from fastqat.selection.scoring.rows import Rows
from fastqat.selection.scoring.scoring_pass import ScoringPass
from fastqat.selection.scoring.sharing import Team
from fastqat.selection.table import ScoreTable


class _Found(NamedTuple):
    """What one process found: number of samples, classes and labels, values per sample of each feature."""

    samples: int
    classes: int
    labels: int
    widths: dict[str, tuple[int, ...]]


def table_of(scoring: ScoringPass, team: Team) -> ScoreTable:
    """The table of all samples, on every process; the teacher's logits are complete from here on.

    Raises:
        DataError: fewer or more samples than the data set said, labels out of range.
        InputError: scores that are NaN.
    """
    widths = {name: rows.row_shape for name, rows in scoring.kept.items()}
    found = team.gather(_Found(scoring.done, scoring.classes, len(scoring.labels), widths))
    total = sum(each.samples for each in found)
    if scoring.size is not None and total != scoring.size:
        raise DataError(f"the data set says it has {scoring.size} samples but yielded {total}; fix its __len__")
    if total == 0:
        raise DataError("the data set is empty; check its path and its filters")
    if scoring.cache is not None:
        scoring.cache.finish(total, team)
    positions = team.positions(scoring.spans)
    labels = _gathered(scoring.labels, (), team, positions) if sum(each.labels for each in found) == total else None
    if "targets" in scoring.wanted.needs and labels is not None:
        _check_labels(labels, max(each.classes for each in found))
    columns = {name: _gathered(scoring.columns.pop(name), (), team, positions) for name in list(scoring.columns)}
    kept = {}
    for name in list(scoring.kept):
        shape = max(each.widths[name] for each in found)
        kept[name] = _gathered(scoring.kept.pop(name), shape, team, positions)
    columns |= team.on_first(lambda: _of_all_samples(scoring, kept, labels))
    _check_numbers(columns)
    feature = scoring.wanted.feature
    in_order = {column.name: columns[column.name] for column in scoring.wanted.columns}
    return ScoreTable(in_order, labels, None if feature is None else kept[feature.name])


def _gathered(rows: Rows, shape: tuple[int, ...], team: Team, positions: list[Tensor]) -> Tensor:
    """All processes' rows, each of `shape`, in data-set order on the CPU."""
    return team.in_order(rows.all() if len(rows) else torch.empty(0, *shape, dtype=rows.dtype), positions)


def _of_all_samples(scoring: ScoringPass, kept: dict[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
    """The scores that compare all samples, computed on the pass's device."""
    columns = scoring.wanted.at("whole")
    if not columns:
        return {}
    needs = {need for column in columns for need in column.score.needs}
    embeddings = kept["embedding"].to(scoring.device) if "embeddings" in needs else None
    probabilities = kept["probabilities"].to(scoring.device) if "probabilities" in needs else None
    whole = WholePass(embeddings, probabilities, None if labels is None else labels.to(scoring.device))
    with torch.no_grad():
        return {column.name: column.score.compute(whole, **column.options).float().cpu() for column in columns}


def _check_labels(labels: Tensor, classes: int) -> None:
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        wrong = ((labels < 0) | (labels >= classes)).nonzero()
        first = int(wrong[0])
        raise DataError(
            f"{len(wrong)} labels are outside [0, {classes}), the first is {int(labels[first])} at index {first}; "
            "fix the labels or the number of outputs of the model"
        )


def _check_numbers(columns: dict[str, Tensor]) -> None:
    for name, values in columns.items():
        if values.min().isnan():  # it is when any is, without a mask of all
            nan = values.isnan().nonzero()
            raise InputError(
                f"score {name!r} of {len(nan)} samples is NaN, the first at index {int(nan[0])}: the logits of the model "
                "(or the teacher) are NaN or infinite there; check its scales and learning rate"
            )
