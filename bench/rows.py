"""Rows of results: one per contender, the same from `fastqat bench` and ``pytest bench``, kept as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastqat._errors import DataError
from fastqat._files import read_csv, write_atomic

from .case import Case
from .machine import Machine, device_name

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One contender of one case.

    `p20_ms`, `p50_ms`, `p80_ms`: time of a call. `gbps`: bytes that must move over p50. `copy_share`: bytes per second over those of the
    copy measured in the same run, the median over rounds. `gflops`: operations over p50. `peak_bytes`: most the allocator had handed out
    during a call, parameters, gradients and optimizer included. `time_ratio`, `memory_ratio`: of the candidate over this contender, below
    1 is better for the candidate. `goals`: those between the candidate and this contender, each with its outcome. `absent`: why it was not
    measured. `device`: what it ran on; rows from before this column are of a CPU.
    """

    case: str
    contender: str
    size: str
    how: str
    rounds: int = 0
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    gbps: float | None = None
    copy_share: float | None = None
    gflops: float | None = None
    peak_bytes: int | None = None
    time_ratio: float | None = None
    memory_ratio: float | None = None
    goals: str = ""
    absent: str = ""
    device: str = ""


@dataclass(frozen=True)
class Measured:
    """What was measured of one contender: seconds per call [rounds], the peak bytes of a call, its own `Work.moved`."""

    seconds: np.ndarray
    peak_bytes: int | None = None
    moved: int | None = None


class Amounts(NamedTuple):
    """What one call of a case moves and computes: bytes, floating point operations; None where that says nothing."""

    moved: int | None
    flops: int | None


def amounts_of(case: Case, inputs: object) -> Amounts:
    """The amounts of `case` for `inputs`."""
    return Amounts(case.moved(inputs) if case.moved else None, case.flops(inputs) if case.flops else None)


COPY, WARM_COPY = "x.clone()", "copy_"  # into fresh memory, and into memory that is there


def rows_of(case: Case, amounts: Amounts, size: str, how: str, measured: dict[str, Measured], absent: dict[str, str]) -> list[Row]:
    """The rows of one case: measured contenders with all their numbers, absent ones with the reason."""
    device = device_name(case.device)
    rows = []
    for contender in case.contenders:
        name = contender.name
        if name in measured:
            rows.append(Row(case.name, name, size, how, device=device, **_numbers(case, name, amounts, measured)))
        else:
            rows.append(Row(case.name, name, size, how, absent=absent.get(name, "not measured"), device=device))
    return rows


def _numbers(case: Case, name: str, amounts: Amounts, measured: dict[str, Measured]) -> dict[str, Any]:
    """The columns of a contender that was measured."""
    found, ours, copy = measured[name], measured.get(case.candidate.name), measured.get(COPY, measured.get(WARM_COPY))
    p20, p50, p80 = (_short(1e3 * float(p)) for p in np.quantile(found.seconds, [0.2, 0.5, 0.8]))
    other = ours is not None and ours is not found
    ratios = {"time": _time_ratio(ours, found) if other else None, "memory": _memory_ratio(ours, found) if other else None}
    ratios["share"] = _share(ours, copy, amounts.moved) if other and found is copy else None
    ratios["beyond"] = float(np.median(ours.seconds) - np.median(found.seconds)) if other else None
    ratios["bytes"] = ours.peak_bytes if other else None
    return {
        "rounds": len(found.seconds),
        "p20_ms": p20,
        "p50_ms": p50,
        "p80_ms": p80,
        "gbps": _rate(found.moved or amounts.moved, p50 / 1e3),
        "copy_share": _share(found, copy, amounts.moved),
        "gflops": _rate(amounts.flops, p50 / 1e3),
        "peak_bytes": found.peak_bytes,
        "time_ratio": ratios["time"],
        "memory_ratio": ratios["memory"],
        "goals": _goals_text(case, name, ratios),
    }


def _rate(amount: int | None, seconds: float) -> float | None:
    return None if amount is None else _short(amount / seconds / 1e9)


def _short(value: float) -> float:
    """Five significant digits: more is noise."""
    return float(f"{value:.5g}")


def _time_ratio(ours: Measured, other: Measured) -> float:
    """Time of `ours` over that of `other`: the median over rounds of the same round's ratio."""
    same = len(ours.seconds) == len(other.seconds)
    return _short(float(np.median(ours.seconds / other.seconds) if same else np.median(ours.seconds) / np.median(other.seconds)))


def _memory_ratio(ours: Measured, other: Measured) -> float | None:
    return _short(ours.peak_bytes / other.peak_bytes) if ours.peak_bytes and other.peak_bytes else None


def _share(found: Measured, copy: Measured | None, moved: int | None) -> float | None:
    """Bytes per second of `found`, which moves `moved` unless it knows better, over those of the copy."""
    moved = found.moved or moved
    if copy is None or copy.moved is None or moved is None:
        return None
    return _short(moved / copy.moved / _time_ratio(found, copy))


def _goals_text(case: Case, contender: str, measured: Mapping[str, float | None]) -> str:
    """Goals against `contender`, each followed by ``met`` or ``MISSED``; `measured`: kind of goal → what was measured."""
    told = []
    for goal in case.goals:
        value = measured[goal.measure]
        if goal.peer == contender and value is not None:
            told.append(f"{goal.text}: {'met' if goal.met(value) else 'MISSED'}")
    return "; ".join(told)


def append_rows(path: Path, rows: Sequence[Row], machine: Machine) -> None:
    """Add `rows`, each with the facts of `machine`, to the CSV file `path`; the old content stays, the file is never half-written.

    Raises:
        DataError: `path` is a CSV file with other columns; a file from before the newest columns is accepted and gets them, empty.
        OSError: the disk is full or the folder cannot be written.
    """
    columns = [field.name for field in (*fields(Machine), *fields(Row))]
    old = read_rows([path]) if path.is_file() else []
    if old and list(old[0]) != columns[: len(old[0])]:
        raise DataError(f"{path} has other columns than this version writes; choose another file with --out or move it away")
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(old)
    writer.writerows({**asdict(machine), **asdict(row)} for row in rows)
    write_atomic(path, text.getvalue())


def read_rows(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Rows of CSV files as they stand, oldest file first."""
    return [row for path in paths for row in read_csv(path)]
