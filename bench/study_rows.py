"""Rows of studies read back: which settings vary, which cells are compared with which, and the differences paired by seed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from fastqat._files import write_atomic
from fastqat.selection.selectors import list_selectors
from fastqat.train.config import FREE_ON_RESUME
from fastqat.train.flags import TrainFlags
from fastqat.train.setting_types import OWN_POLICIES

from .paired import Paired, paired
from .rows import read_rows

Row = dict[str, str]
CURVE = "_curve"  # ends the name of a study's second file, a line per validated epoch
DEFAULTS = {setting.name: setting.default for setting in fields(TrainFlags)}
# Those of them by which cells may be told apart: the others change no weight, or only repeat the cell.
SETTINGS = tuple(name for name in DEFAULTS if name not in FREE_ON_RESUME | {"seed", "float_seed", "val_interval", "workers", "device"})
# Settings that belong to a way of choosing data or to a loss: they may differ between a cell and what it is compared with.
OWN: dict[str, frozenset[str]] = {
    "select": frozenset(
        {"interval", "score", "features", "schedule", "balanced", "first_select", "bn_reestimate", "epochs"}
        | {name for name in SETTINGS if name.startswith(("select_", "score_"))}
    ),
    "loss": frozenset(name for name in SETTINGS if name.startswith("clc_")),
}
ALL_DATA = "none"
USUAL = ("rs2", "random", ALL_DATA)  # the reference of ways to choose data, the first that there is
BARE = frozenset({"data", "model", "qconfig", "loss", "quantizer", "select", "score"})  # whose values speak for themselves
PLAIN = BARE | {"fraction", "label_noise", "interval", "epochs", "float_epochs", "limit", "batch_size", "lr"}  # told at their default too


def same(found: str, wanted: object) -> bool:
    """Whether a value of a row is that of a YAML file: numbers by value, the rest by its text; None is an empty cell.

    Example:
        >>> same("0.10", 0.1), same("True", True), same("", None), same("kd", "ce")
        (True, True, True, False)
    """
    if wanted is None:
        return found in ("", "None")
    try:
        return float(found) == float(str(wanted))
    except ValueError:
        return found.lower() == str(wanted).lower()


@dataclass(frozen=True)
class Study:
    """The rows of one study: `cells` cell → seed → row; `curves` (cell, seed) → rows by epoch."""

    name: str
    cells: dict[str, dict[str, Row]]
    curves: dict[tuple[str, str], list[Row]] = field(default_factory=dict)

    def first(self, cell: str) -> Row:
        """A row of `cell`: its settings are those of all."""
        return next(iter(self.cells[cell].values()))

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """The settings that differ between cells: columns before the seed, as results may have names of settings too.

        A fraction is no setting of training on all data.
        """
        rows = [self.first(cell) for cell in self.cells]
        columns = {name for row in rows for name in takewhile(lambda name: name != "seed", row)}
        selected = [row for row in rows if not same(row.get("select", ""), ALL_DATA)]
        values = {name: {row.get(name, "") for row in (selected if name == "fraction" else rows)} for name in SETTINGS if name in columns}
        return tuple(name for name, found in values.items() if len(found) > 1)

    def where(self, wanted: Mapping[str, Any]) -> Study:
        """The cells whose settings are those of `wanted`: name → a value or a list of values; ``cell`` names cells."""

        def fits(cell: str) -> bool:
            row = {**self.first(cell), "cell": cell}
            return all(any(same(row.get(name, ""), value) for value in _listed(values)) for name, values in wanted.items())

        return Study(self.name, {cell: rows for cell, rows in self.cells.items() if fits(cell)}, self.curves)

    def numbers(self, cell: str, column: str) -> list[float]:
        """The values of `column` of all seeds of `cell` that have one."""
        return [float(row[column]) for row in self.cells[cell].values() if row.get(column)]


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def study_of(name: str, rows: Iterable[Row], curves: Iterable[Row] = ()) -> Study:
    """A study from rows: those without a test accuracy are left out, and of a cell and seed that stand twice the last counts."""
    cells: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.get("test_accuracy"):
            cells.setdefault(row["cell"], {})[row["seed"]] = row
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in curves:
        if row.get("val_accuracy"):
            found.setdefault((row["cell"], row["seed"]), {})[int(row["epoch"])] = row
    return Study(name, cells, {key: [rows[epoch] for epoch in sorted(rows)] for key, rows in found.items()})


def read_studies(folder: Path) -> dict[str, Study]:
    """Name → study, of all ``study_<name>.csv`` in `folder` that hold a finished run."""
    studies = {}
    for path in sorted(folder.glob("study_*.csv")):
        if path.stem.endswith(CURVE):
            continue
        curve = path.with_name(f"{path.stem}{CURVE}.csv")
        study = study_of(path.stem.removeprefix("study_"), read_rows([path]), read_rows([curve]) if curve.is_file() else ())
        if study.cells:
            studies[study.name] = study
    return studies


def is_all_data(study: Study, cell: str) -> bool:
    """Whether `cell` trains on all data."""
    return same(study.first(cell).get("select", ""), ALL_DATA)


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
    """Cells of one context, settings that all of them share, and those among them that the others are compared with."""

    context: dict[str, str]
    cells: list[str]
    references: list[str]

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

    Training on all data has no fraction: it belongs to the contexts of every fraction.
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
        groups.append(Group(context, cells, references))
    return [group for group in groups if len(group.cells) > len(group.references)] or groups


def reference_of(study: Study, group: Group, cell: str) -> str | None:
    """The reference that shares most settings with `cell`, the first of equals; None for a reference, and where there is none."""
    if cell in group.references or not group.references:
        return None
    own = study.first(cell)
    return max(group.references, key=lambda other: sum(study.first(other).get(name) == own.get(name) for name in study.varying))


def difference(study: Study, cell: str, reference: str, measure: str = "test_accuracy") -> Paired | None:
    """`cell` − `reference` in points, paired by seed, clustered by float checkpoint; None where they share no seed."""
    pairs = seed_differences(study, cell, reference, measure)
    rows = study.cells[cell]
    return paired(list(pairs.values()), [rows[seed].get("float_seed") or seed for seed in pairs]) if pairs else None


def seed_differences(study: Study, cell: str, reference: str, measure: str = "test_accuracy") -> dict[str, float]:
    """Seed → `cell` − `reference` in points, of the seeds that both have."""
    own, other = study.cells[cell], study.cells[reference]
    both = [seed for seed in own if seed in other and own[seed].get(measure) and other[seed].get(measure)]
    return {seed: 100 * (float(own[seed][measure]) - float(other[seed][measure])) for seed in sorted(both, key=int)}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows`, all with the columns of the first, in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def told(name: str, value: str) -> str:
    """A setting and its value in words.

    Example:
        >>> told("select", "none"), told("fraction", "0.1"), told("bn_reestimate", "20"), told("interval", "")
        ('all data', '10 %', 'bn reestimate 20', 'selected once')
    """
    if name == "select":
        return "all data" if same(value, ALL_DATA) else value
    if name == "fraction":
        return f"{100 * float(value):g} %"
    if name == "interval":
        return "selected once" if same(value, None) else f"every {value} epochs"
    if name == "label_noise":
        return f"{100 * float(value or 0):g} % label noise"
    if name in BARE:
        return value
    value = Path(value).stem if "/" in value else value or "none"
    return name.replace("_", " ") + ("" if same(value, True) else f" {value}")


def goes_by_score(select: str) -> bool:
    """Whether a way of choosing data takes the setting `score`.

    Example:
        >>> goes_by_score("topk"), goes_by_score("k_center"), goes_by_score("acs")
        (True, False, False)
    """
    return select not in OWN_POLICIES and select in list_selectors() and "scores" in list_selectors()[select].needs


def words(row: Mapping[str, str], names: Iterable[str]) -> str:
    """The settings `names` of a row in words, without those that say nothing: options at their default, the score of ways without one."""
    shown = [name for name in names if name in PLAIN or not same(row.get(name, ""), DEFAULTS[name])]
    if not goes_by_score(row.get("select", "")):
        shown = [name for name in shown if name != "score"]
    return ", ".join(told(name, row.get(name, "")) for name in shown)


def labels(study: Study, group: Group, how: Comparison) -> dict[str, str]:
    """Cell → what sets it apart in its group: its factor, and the settings that vary among cells of that factor; else its own name."""
    texts = {}
    for cell in group.cells:
        row = study.first(cell)
        alike = [study.first(other) for other in study.cells if study.first(other).get(how.factor) == row.get(how.factor)]
        varies = {name for name in study.varying if name == "score" or len({other.get(name, "") for other in alike}) > 1}
        own = [name for name in study.varying if name in how.free & varies]
        texts[cell] = ", ".join(text for text in (told(how.factor, row.get(how.factor, "")), words(row, own)) if text)
    return {cell: text if list(texts.values()).count(text) == 1 else cell for cell, text in texts.items()}
