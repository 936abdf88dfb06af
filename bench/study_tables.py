"""The tables of bench/evidence.md, from rows of studies and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple

from .paired import BETTER, MARGIN, NOT_WORSE, OPEN, WORSE, Paired, verdicts
from .study_cost import SHARE, Cost, costs
from .study_rows import Comparison, Group, Study, difference, groups_of, is_all_data, labels, reference_of, told, words

WORTH = 1.0  # points by which all data must be ahead of the reference for there to be something to win
MARKS = {BETTER: " ▲", NOT_WORSE: " ≈", WORSE: " ▼", OPEN: ""}
STAR = r" \*"
PICKED = "noisy_selected_mean"
COSTS = ("steps", "scoring forwards", "samples seen", "seconds", "of them selecting")
NOISY = ("noisy among selected",)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a first column without any text is left out."""
    if not any(line[0] for line in lines):
        head, lines = head[1:], [line[1:] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def spread(values: list[float], factor: float = 100, digits: int = 2) -> str:
    """Mean and standard deviation of a column; – without values."""
    if not values:
        return "–"
    deviation = f" ± {factor * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{factor * mean(values):.{digits}f}{deviation}"


def interval(found: Paired) -> str:
    """A difference in points and its 95 % interval."""
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]" if found.freedom else f"{found.mean:+.2f}"


class Compared(NamedTuple):
    """A difference to a reference, the verdict on it alone, and whether that verdict stays after Holm's correction over the family."""

    value: Paired
    verdict: str
    stays: bool

    @property
    def words(self) -> str:
        """The verdict, starred where it stays."""
        return self.verdict + (STAR if self.stays and self.verdict != OPEN else "")


Found = dict[tuple[int, str], Compared]


def compared(study: Study, groups: Iterable[Group], measure: str) -> Found:
    """(number of the group, cell) → how it compares to its reference; the family is all of them but those of all data, a control."""
    found: dict[tuple[int, str], Paired] = {}
    for number, group in enumerate(groups):
        for cell in group.cells:
            reference = reference_of(study, group, cell)
            value = difference(study, cell, reference, measure) if reference else None
            if value is not None:
                found[number, cell] = value
    alone = {key: verdicts([value])[0] for key, value in found.items()}
    family = [key for key in found if not is_all_data(study, key[1])]
    together = dict(zip(family, verdicts([found[key] for key in family]), strict=True))
    return {key: Compared(value, alone[key], together.get(key) == alone[key]) for key, value in found.items()}


def cells_table(study: Study, how: Comparison, measure: str = "test_accuracy", cost: bool = True) -> str:
    """A line per cell: accuracy, the paired difference to the reference with interval and verdict, and what the runs cost."""
    groups = groups_of(study, how)
    found = compared(study, groups, measure)
    noisy = any(study.numbers(cell, PICKED) for cell in study.cells)
    lines = []
    for number, group in enumerate(groups):
        context, names = group.name, labels(study, group, how)
        for cell in group.cells:
            accuracy = _accuracy_part(study, cell, found.get((number, cell)), cell in group.references, measure)
            lines.append([context, names[cell], *accuracy, *_cost_part(study, cell) * cost, *_noisy_part(study, cell) * noisy])
            context = ""
    head = ["setting", "cell", "accuracy", "− reference [95 %]", "seeds (float models)", "verdict", *COSTS * cost, *NOISY * noisy]
    intro = f"{_source(study)} Accuracy in %, mean ± standard deviation over seeds. {_difference_words(study, how, found)}"
    return "\n".join([intro, "", table(head, lines), *_nothing_to_win(study, groups, found)])


def _accuracy_part(study: Study, cell: str, found: Compared | None, is_reference: bool, measure: str) -> list[str]:
    rows = study.cells[cell]
    models = {row.get("float_seed") or seed for seed, row in rows.items()}
    accuracy = spread(study.numbers(cell, measure))
    if found is None:
        return [accuracy, "–", f"{len(rows)} ({len(models)})", "reference" if is_reference else "–"]
    return [accuracy, interval(found.value), f"{found.value.pairs} ({found.value.clusters})", found.words]


def _cost_part(study: Study, cell: str) -> list[str]:
    counts = [study.numbers(cell, name) for name in ("gradient_steps", "scoring_forwards", "unique_samples", "seconds")]
    share = [float(row["selection_seconds"]) / float(row["seconds"]) for row in study.cells[cell].values() if _timed(row)]
    return [*(f"{mean(values):,.0f}" if values else "–" for values in counts), f"{100 * mean(share):.0f} %" if share else "–"]


def _timed(row: Mapping[str, str]) -> bool:
    return bool(row.get("selection_seconds")) and float(row.get("seconds") or 0) > 0


def _noisy_part(study: Study, cell: str) -> list[str]:
    values = study.numbers(cell, PICKED)
    return [f"{100 * mean(values):.1f} %" if values else "–"]


def _source(study: Study) -> str:
    return f"Study `{study.name}` ({machine_of(study)})."


def _difference_words(study: Study, how: Comparison, found: Found) -> str:
    """What the differences and the verdicts are."""
    family = sum(not is_all_data(study, cell) for _, cell in found)
    text = f"Difference to {told(how.factor, str(how.reference))} in points, paired by seed. Verdicts at 5 %, each alone"
    return f"{text}; \\* where it stays after Holm's correction over the {family} comparisons here." if family > 1 else f"{text}."


def machine_of(study: Study) -> str:
    """Where the rows were measured."""
    rows = [row for cell in study.cells.values() for row in cell.values()]
    places = {(row.get("cpu") or row.get("device") or "machine not told", row.get("threads", "?"), row.get("torch", "?")) for row in rows}
    hours = sum(float(row.get("seconds") or 0) for row in rows) / 3600
    told_places = "; ".join(f"{cpu}, threads a run: {threads}, torch {torch}" for cpu, threads, torch in sorted(places))
    return f"{told_places}; {len(rows)} runs, {hours:.1f} hours of quantized training"


def _nothing_to_win(study: Study, groups: list[Group], found: Found) -> list[str]:
    """A sentence on the contexts where all data is hardly ahead of the reference."""
    named = []
    for number, group in enumerate(groups):
        ahead = [found[number, cell].value.mean for cell in group.cells if is_all_data(study, cell) and (number, cell) in found]
        if ahead and max(ahead) < WORTH:
            named.append(f"{group.name or 'this study'} ({max(ahead):+.2f})")
    if not named:
        return []
    return ["", f"All data is less than {WORTH:g} point ahead of the reference, so that there is little to win: {'; '.join(named)}."]


def matrix_table(study: Study, how: Comparison, across: str, measure: str = "test_accuracy") -> str:
    """A line per way, a column per value of `across`: accuracy, and in brackets the difference to the reference with its mark."""
    groups = groups_of(study, how)
    found, columns = compared(study, groups, measure), dict[str, float]()
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for number, group in enumerate(groups):
        rest = words(group.context, [name for name in group.context if name != across])
        column = told(across, group.context.get(across, ""))
        columns[column] = float(group.context.get(across) or 0)
        for cell, name in labels(study, group, how).items():
            one = found.get((number, cell))
            beside = f" ({one.value.mean:+.2f}{MARKS[one.verdict]}{STAR * one.stays if MARKS[one.verdict] else ''})" if one else ""
            lines.setdefault((rest, name), {})[column] = f"{100 * mean(study.numbers(cell, measure)):.2f}{beside}"
    order = sorted(columns, key=columns.__getitem__)
    body = [[rest, name, *(cells.get(column, "–") for column in order)] for (rest, name), cells in lines.items()]
    note = f"▲ better, ≈ not worse (within {MARGIN} points), ▼ worse, no mark: not resolved."
    intro = f"{_source(study)} Mean accuracy in %, and in brackets the difference: {note} {_difference_words(study, how, found)}"
    return "\n".join([intro, "", table(["setting", "way", *order], body)])


def seconds_table(study: Study, how: Comparison) -> str:
    """A line per cell: how many seeds reached the accuracy asked for, after how many seconds, and over the fastest full-data schedule."""
    groups = groups_of(study, how)
    lines = []
    for group in groups:
        context, names = group.name, labels(study, group, how)
        for cell, cost in costs(study, group).items():
            lines.append([context, names[cell], *_seconds_part(cost)])
            context = ""
    if not lines:
        return f"Study `{study.name}` has no curves of runs on all data, which say what accuracy is to be reached."
    head = ["setting", "cell", "seeds that reached it", "seconds (median)", "× fastest on all data (median)"]
    intro = (
        f"{_source(study)} Seconds of quantized training, selection included, until validation first shows "
        f"{100 * SHARE:g} % of the best final accuracy of a full-data schedule of the same seed."
    )
    return "\n".join([intro, "", table(head, lines)])


def _seconds_part(cost: Cost) -> list[str]:
    reached = [value for value in cost.seconds if value is not None]
    shown = [f"{median(reached):.0f}" if reached else "–", f"{median(cost.ratios):.2f}" if cost.ratios else "–"]
    return [f"{len(reached)} of {len(cost.seconds)}", *shown]


def coverage_table(studies: Mapping[str, Study], folder: Path) -> str:
    """A line per study: planned in `folder` by its YAML file, with what has been run of it."""
    names = dict.fromkeys([*sorted(path.stem for path in folder.glob("*.yaml")), *studies])
    lines = []
    for name in names:
        study = studies.get(name)
        if study is None:
            lines.append([f"`{name}`", "no rows", "–", "–"])
            continue
        seeds = [len(rows) for rows in study.cells.values()]
        hours = sum(sum(study.numbers(cell, "seconds")) for cell in study.cells) / 3600
        lines.append([f"`{name}`", str(len(seeds)), f"{min(seeds)}–{max(seeds)}" if len(set(seeds)) > 1 else str(seeds[0]), f"{hours:.1f}"])
    return table(["study", "cells", "seeds a cell", "hours of quantized training"], lines)
