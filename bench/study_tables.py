"""The tables of bench/evidence.md, from rows of studies and from nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median, stdev
from typing import NamedTuple

from .paired import BETTER, MARGIN, NOT_WORSE, OPEN, WORSE, Paired, verdicts
from .study_cost import SHARE, Cost, costs, schedules_words
from .study_groups import (
    BUDGET,
    Comparison,
    Group,
    difference,
    float_models,
    groups_of,
    has_budget,
    is_full_length,
    labels,
    reference_of,
    steps_share,
)
from .study_plans import Plan, coverage
from .study_rows import MEASURE, PICKED, Row, Study, is_all_data
from .study_words import ALL_DATA, same, told, words

WORTH = 1.0  # points by which all data must be ahead of the reference for there to be something to win
MARKS = {BETTER: " ▲", NOT_WORSE: " ≈", WORSE: " ▼", OPEN: ""}
STAR = r" \*"
ONE_MODEL = ", this float model"
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
    """A difference to a reference, the verdict on it alone, whether it `counts` as one of the family, and whether its verdict `stays` after
    Holm's correction over that; where all runs started from one float model it never does."""

    value: Paired
    verdict: str
    counts: bool
    stays: bool

    @property
    def words(self) -> str:
        """The verdict, starred where it stays, and with the one float model that it is about."""
        if self.verdict == OPEN:
            return OPEN
        return self.verdict + (ONE_MODEL if self.value.one_model else STAR * self.stays)


Found = dict[tuple[int, str], Compared]


def compared(study: Study, groups: Iterable[Group], measure: str) -> Found:
    """(number of the group, cell) → how it compares to its reference.

    The family is all of them but those of all data, a control, unless it has about as many gradient steps as the reference.
    """
    groups = list(groups)
    found: dict[tuple[int, str], Paired] = {}
    for number, group in enumerate(groups):
        for cell in group.cells:
            reference = reference_of(study, group, cell)
            value = difference(study, cell, reference, measure) if reference else None
            if value is not None:
                found[number, cell] = value
    alone = {key: verdicts([value])[0] for key, value in found.items()}
    family = [key for key in found if not is_all_data(study, key[1]) or has_budget(study, groups[key[0]], key[1])]
    together = dict(zip(family, verdicts([found[key] for key in family]), strict=True))
    return {
        key: Compared(value, alone[key], key in together, together.get(key) == alone[key] and not value.one_model)
        for key, value in found.items()
    }


def cells_table(study: Study, how: Comparison, measure: str = MEASURE, cost: bool = True) -> str:
    """A line per cell: accuracy, the paired difference to the reference with interval and verdict, and what the runs cost."""
    groups = groups_of(study, how)
    found = compared(study, groups, measure)
    noisy = any(study.numbers(cell, PICKED) for cell in study.cells)
    lines = []
    for number, group in enumerate(groups):
        context, names = group.name, labels(study, group, how)
        for cell in group.cells:
            accuracy = _accuracy_part(study, cell, found.get((number, cell)), cell in group.references, measure)
            lines.append(
                [
                    context,
                    names[cell] + _steps_part(study, group, cell),
                    *accuracy,
                    *_cost_part(study, cell) * cost,
                    *_noisy_part(study, cell) * noisy,
                ]
            )
            context = ""
    head = ["setting", "cell", "accuracy", "− reference [95 %]", "seeds (float models)", "verdict", *COSTS * cost, *NOISY * noisy]
    intro = f"{_source(study)} Accuracy in %, mean ± standard deviation over seeds. {_difference_words(study, how, found)}"
    return "\n".join([intro, "", table(head, lines), *_what_can_be_won(study, how, groups, found)])


def _steps_part(study: Study, group: Group, cell: str) -> str:
    """Of a run on all data with about as many steps as the reference: how many exactly."""
    return f" ({steps_share(study, group, cell):.2f} ×)" if has_budget(study, group, cell) else ""


def _accuracy_part(study: Study, cell: str, found: Compared | None, is_reference: bool, measure: str) -> list[str]:
    rows = study.cells[cell]
    models = set(float_models(rows).values())
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
    text = f"Difference to {told(how.factor, str(how.reference))} in points, paired by seed. Verdicts at 5 %, each alone"
    family = sum(one.counts for one in found.values())
    if family:
        text += f"; \\* where it stays after Holm's correction over the {family} comparison{'s' * (family > 1)} here"
    if any(one.counts and is_all_data(study, cell) for (_, cell), one in found.items()):
        text += f". All data, about as many steps: up to a factor of {BUDGET:g} as many as the reference"
    if any(one.value.one_model and one.value.freedom for one in found.values()):
        text += ". Pairs of one float model: interval and verdict are over seeds, about that model, and say nothing about others"
    return f"{text}."


def machine_of(study: Study) -> str:
    """Where the rows were measured, and by which commits where there are several."""
    rows = [row for cell in study.cells.values() for row in cell.values()]
    places = sorted({_place(row) for row in rows})
    hours = sum(float(row.get("seconds") or 0) for row in rows) / 3600
    commits = Counter(row.get("commit") or "not told" for row in rows)
    several = f", of commits {', '.join(f'{name[:7]} ({count})' for name, count in sorted(commits.items()))}" if len(commits) > 1 else ""
    return f"{'; '.join(places)}; {len(rows)} runs{several}, {hours:.1f} hours of quantized training"


def _place(row: Row) -> str:
    """The machine of a row, and how much of it a run had."""
    machine = row.get("cpu") or row.get("device") or "machine not told"
    beside = f", {row['jobs']} runs side by side" if row.get("jobs") else ""
    return f"{machine}, threads a run: {row.get('threads', '?')}, torch {row.get('torch', '?')}{beside}"


def _what_can_be_won(study: Study, how: Comparison, groups: list[Group], found: Found) -> list[str]:
    """Sentences on the contexts where all data at full length is hardly ahead of the reference, and on those where it was not run."""
    if how.factor != "select" or same(ALL_DATA, how.reference):
        return []
    little, open_ = [], []
    for number, group in enumerate(groups):
        ahead = [found[number, cell].value.mean for cell in group.cells if is_full_length(study, group, cell) and (number, cell) in found]
        if not ahead:
            open_.append(group.name or "this study")
        elif max(ahead) < WORTH:
            little.append(f"{group.name or 'this study'} ({max(ahead):+.2f})")
    texts = []
    if little:
        texts.append(f"All data is less than {WORTH:g} point ahead of the reference, so that there is little to win: {'; '.join(little)}.")
    if open_:
        texts.append(f"Not known, for lack of all data at full length, whether there is anything to win: {'; '.join(open_)}.")
    return ["", " ".join(texts)] if texts else []


def matrix_table(study: Study, how: Comparison, across: str, measure: str = MEASURE) -> str:
    """A line per way, a column per value of `across`: accuracy, and in brackets the difference to the reference with its mark."""
    groups = groups_of(study, how)
    found, columns = compared(study, groups, measure), dict[str, float]()
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for number, group in enumerate(groups):
        rest = words(group.context, [name for name in group.context if name != across])
        column = told(across, group.context.get(across, ""))
        columns[column] = float(group.context.get(across) or 0)
        names = labels(study, group, how)
        for cell in group.cells:
            one = found.get((number, cell))
            beside = f" ({one.value.mean:+.2f}{MARKS[one.verdict]}{STAR * one.stays if MARKS[one.verdict] else ''})" if one else ""
            lines.setdefault((rest, names[cell]), {})[column] = f"{100 * mean(study.numbers(cell, measure)):.2f}{beside}"
    order = sorted(columns, key=columns.__getitem__)
    body = [[rest, name, *(cells.get(column, "–") for column in order)] for (rest, name), cells in lines.items()]
    note = f"▲ better, ≈ not worse (within {MARGIN} points), ▼ worse, no mark: not resolved."
    intro = f"{_source(study)} Mean accuracy in %, and in brackets the difference: {note} {_difference_words(study, how, found)}"
    return "\n".join([intro, "", table(["setting", "way", *order], body), *_what_can_be_won(study, how, groups, found)])


def seconds_table(study: Study, how: Comparison) -> str:
    """A line per cell: how many seeds reached the accuracy asked for, after how many seconds, and over the fastest full-data schedule."""
    groups = groups_of(study, how)
    lines: list[list[str]] = []
    schedules = dict[str, None]()
    for group in groups:
        context, names, found = group.name, labels(study, group, how), costs(study, group)
        if found:
            schedules[schedules_words(study, group)] = None
        for cell, cost in found.items():
            lines.append([context, names[cell], *_seconds_part(cost)])
            context = ""
    if not lines:
        return f"Study `{study.name}` has no curves of runs on all data, which say what accuracy is to be reached."
    head = ["setting", "cell", "seeds that reached it", "seconds (median)", "between two looks", "× fastest on all data (median)"]
    intro = (
        f"{_source(study)} Seconds of quantized training, selection included, until validation comes to "
        f"{100 * SHARE:g} % of the best final accuracy of a full-data schedule of the same seed and is there at the next look too; linear "
        f"between looks. < and >: bounds, as the accuracy was reached before the first look. {' '.join(schedules)}"
    )
    return "\n".join([intro, "", table(head, lines)])


def _seconds_part(cost: Cost) -> list[str]:
    known = [one for one in cost.reached if one is not None]
    count, gap = f"{len(known)} of {len(cost.reached)}", f"{cost.gap:.3g}"
    if not known:
        return [count, "–", gap, "–"]
    seconds = "< " * any(one.is_bound for one in known) + f"{median(one.seconds for one in known):.3g}"
    ratio = "not told by the looks" if cost.sign == "?" else f"{cost.sign} {median(cost.ratios):.2f}".strip()
    return [count, seconds, gap, ratio]


def coverage_table(studies: Mapping[str, Study], plans: Mapping[str, Plan]) -> str:
    """A line per study: what has been run of what is planned."""
    lines = []
    for name in sorted({*plans, *studies}):
        study = studies.get(name)
        hours = sum(sum(study.numbers(cell, "seconds")) for cell in study.cells) / 3600 if study else 0.0
        lines.append([f"`{name}`", *coverage(plans.get(name), study.cells if study else {}), f"{hours:.1f}" if study else "–"])
    return table(["study", "cells", "seeds a cell", "runs", "hours of quantized training"], lines)
