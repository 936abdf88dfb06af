"""Which cells of a study are compared with which, their names in words, and the differences paired by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from fastqat._errors import InputError

from .paired import Paired, paired
from .study_rows import SETTINGS, Row, Study, is_all_data
from .study_words import ALL_DATA, same, told, words

# Settings that belong to a way of choosing data or to a loss: they may differ between a cell and what it is compared with.
OWN: dict[str, frozenset[str]] = {
    "select": frozenset(
        {"interval", "score", "features", "schedule", "balanced", "first_select", "bn_reestimate", "epochs"}
        | {name for name in SETTINGS if name.startswith(("select_", "score_"))}
    ),
    "loss": frozenset(name for name in SETTINGS if name.startswith("clc_")),
}
USUAL = ("rs2", "random", ALL_DATA)  # the reference of ways to choose data, the first that there is
BUDGET = 1.25  # a run on all data has about as many gradient steps as another up to this factor, either way


@dataclass(frozen=True)
class Comparison:
    """What is compared: cells with another `factor` than `reference` with those that have it, all else equal but the settings in `free`."""

    factor: str = "select"
    reference: Any = "rs2"
    free: frozenset[str] = OWN["select"]

    @classmethod
    def of(cls, compare: Mapping[str, Any], free: Iterable[str] = ()) -> Comparison:
        """From ``{factor: reference}``; `free`: settings that may differ beside those that belong to the factor."""
        ((factor, reference),) = compare.items()
        return cls(factor, reference, OWN.get(factor, frozenset()) | frozenset(free))


@dataclass(frozen=True)
class Group:
    """Cells of one context, settings that all of them share, and those among them that the others are compared with.

    `schedules`: all runs on all data of that context, also those that are no part of `cells`, as their budget is that of another group.
    """

    context: dict[str, str]
    cells: list[str]
    references: list[str]
    schedules: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The context in words."""
        return words(self.context, self.context)


def usual(study: Study) -> Comparison | None:
    """What a study is about where nobody says: ways of choosing data, against the first of `USUAL` that it has; None where it has none."""
    ways = {study.first(cell).get("select", "") for cell in study.cells}
    reference = next((way for way in USUAL if way in ways), None)
    return Comparison(reference=reference) if reference and len(ways) > 1 else None


def groups_of(study: Study, how: Comparison) -> list[Group]:
    """The cells of `study` by context; contexts where nothing is compared are left out, unless that is so in all.

    Training on all data has no fraction: it belongs to the contexts of every fraction, but for a schedule with about as many gradient steps
    as the reference of some of them, which is compared in those alone.
    """
    names = [name for name in study.varying if name != how.factor and name not in how.free]
    contexts = {cell: {name: study.first(cell).get(name, "") for name in names} for cell in study.cells}
    if how.factor == "select":
        for cell, context in contexts.items():
            if is_all_data(study, cell):
                context.pop("fraction", None)
    whole = [context for context in contexts.values() if len(context) == len(names)] or list(contexts.values())
    groups = []
    for context in {tuple(context.items()): context for context in whole}.values():
        cells = [cell for cell, own in contexts.items() if own.items() <= context.items()]
        references = [cell for cell in cells if same(study.first(cell).get(how.factor, ""), how.reference)]
        schedules = [cell for cell in cells if is_all_data(study, cell)] if how.factor == "select" else []
        groups.append(Group(context, cells, references, schedules))
    return _at_their_budget(study, [group for group in groups if len(group.cells) > len(group.references)] or groups)


def _at_their_budget(study: Study, groups: list[Group]) -> list[Group]:
    """The groups without the schedules that have the budget of another group and not theirs."""
    matched = [{cell for cell in group.schedules if has_budget(study, group, cell)} for group in groups]
    elsewhere = set[str]().union(*matched)
    return [
        replace(group, cells=[cell for cell in group.cells if cell in own or cell not in elsewhere])
        for group, own in zip(groups, matched, strict=True)
    ]


def is_full_length(study: Study, group: Group, cell: str) -> bool:
    """Whether `cell` trains on all data for as many epochs as a reference of its group on a part; without references, as the longest."""
    if not is_all_data(study, cell):
        return False
    others = [study.first(other).get("epochs") or "0" for other in group.references] or [
        max((study.first(other).get("epochs") or "0" for other in group.schedules), key=float)
    ]
    return any(same(study.first(cell).get("epochs") or "0", epochs) for epochs in others)


def steps_share(study: Study, group: Group, cell: str) -> float | None:
    """Gradient steps of `cell` over those of its reference, means over seeds; None where they are not known or it has no reference."""
    reference = reference_of(study, group, cell)
    own, other = (study.numbers(name, "gradient_steps") if name else [] for name in (cell, reference))
    return mean(own) / mean(other) if own and other else None


def has_budget(study: Study, group: Group, cell: str) -> bool:
    """Whether `cell` trains on all data for fewer or more epochs than its reference, with about as many gradient steps."""
    if not is_all_data(study, cell) or is_full_length(study, group, cell):
        return False
    share = steps_share(study, group, cell)
    return share is not None and 1 / BUDGET <= share <= BUDGET


def reference_of(study: Study, group: Group, cell: str) -> str | None:
    """The reference that shares most settings with `cell`, the first of equals; None for a reference, and where there is none."""
    if cell in group.references or not group.references:
        return None
    own = study.first(cell)
    return max(group.references, key=lambda other: sum(study.first(other).get(name) == own.get(name) for name in study.varying))


def difference(study: Study, cell: str, reference: str, measure: str = "test_accuracy") -> Paired | None:
    """`cell` − `reference` in points, paired by seed, clustered by float model; None where they share no seed."""
    pairs, models = seed_differences(study, cell, reference, measure), float_models(study.cells[cell])
    return paired(list(pairs.values()), [models[seed] for seed in pairs]) if pairs else None


def float_models(rows: Mapping[str, Row]) -> dict[str, str]:
    """Seed → what tells apart the float models of a cell's rows: the name of the weights if all have one, else their seed, else the run's.

    Example:
        >>> named = {"4": {"float_seed": "1", "float_model": "c0ffee00"}}
        >>> float_models(named), float_models({**named, "7": {"float_seed": "1"}, "8": {}})
        ({'4': 'c0ffee00'}, {'4': '1', '7': '1', '8': '8'})
    """
    column = "float_model" if all(row.get("float_model") for row in rows.values()) else "float_seed"
    return {seed: row.get(column) or seed for seed, row in rows.items()}


def seed_differences(study: Study, cell: str, reference: str, measure: str = "test_accuracy") -> dict[str, float]:
    """Seed → `cell` − `reference` in points, of the seeds that both have.

    Raises:
        InputError: runs of one seed started from different float models, so that they are no pair.
    """
    own, other = study.cells[cell], study.cells[reference]
    both = [seed for seed in own if seed in other and own[seed].get(measure) and other[seed].get(measure)]
    for seed in both:
        if unlike := _unlike(own[seed], other[seed]):
            raise InputError(
                f"study {study.name}: {cell} and {reference} of seed {seed} started from different float models ({unlike}) and are no "
                "pair; run one of them again from the float model of the other, or leave its rows out"
            )
    return {seed: 100 * (float(own[seed][measure]) - float(other[seed][measure])) for seed in sorted(both, key=int)}


def _unlike(own: Row, other: Row) -> str:
    """How the float models of two rows differ: by the name of the weights, where one has none by seed and accuracy; empty where not."""
    names = ("float_model",) if own.get("float_model") and other.get("float_model") else ("float_seed", "float_accuracy")
    pairs = {name: (own.get(name, ""), other.get(name, "")) for name in names}
    return "; ".join(f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a and b and not same(a, b))


def labels(study: Study, group: Group, how: Comparison) -> dict[str, str]:
    """Cell → what sets it apart in its group: its factor, and the settings that vary among cells of that factor; else its own name.

    The group's schedules have names too. Those are at full length where nothing else is said.
    """
    texts = {}
    for cell in dict.fromkeys([*group.schedules, *group.cells]):
        row = study.first(cell)
        alike = [study.first(other) for other in study.cells if study.first(other).get(how.factor) == row.get(how.factor)]
        varies = {name for name in study.varying if name == "score" or len({other.get(name, "") for other in alike}) > 1}
        own = [name for name in study.varying if name in how.free & varies]
        factor = told(how.factor, row.get(how.factor, ""))
        if cell in group.schedules and cell not in group.references:
            factor += _length(study, group, cell)
            own = [name for name in own if name != "epochs"]
        texts[cell] = ", ".join(text for text in (factor, words(row, own)) if text)
    return {cell: text if list(texts.values()).count(text) == 1 else cell for cell, text in texts.items()}


def _length(study: Study, group: Group, cell: str) -> str:
    """What is added to the name of a run on all data that is not at full length."""
    if is_full_length(study, group, cell):
        return ""
    return ", about as many steps" if has_budget(study, group, cell) else f", {study.first(cell).get('epochs')} epochs"
