"""Rows of results: one per contender, the same from `fastqat bench` and ``pytest bench``, kept as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from fastqat._errors import DataError
from fastqat._files import write_atomic

from .case import Case
from .machine import Machine


@dataclass(frozen=True)
class Row:
    """One contender of one case.

    `p20_ms`, `p50_ms`, `p80_ms`: time of a call. `gbps`: bytes that must move over p50. `copy_share`: gbps over that of the copy
    measured in the same run. `gflops`: operations over p50. `peak_bytes`: most the allocator had handed out during a call, parameters,
    gradients and optimizer included. `time_ratio`, `memory_ratio`: of the candidate over this contender, below 1 is better for
    the candidate. `goals`: those between the candidate and this contender, each with its outcome. `absent`: why it was not measured.
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


@dataclass(frozen=True)
class Measured:
    """What was measured of one contender: seconds per call [rounds], the peak bytes of a call, its own `Work.moved`."""

    seconds: np.ndarray
    peak_bytes: int | None = None
    moved: int | None = None


COPY = "x.clone()"


def rows_of(case: Case, inputs: object, size: str, how: str, measured: dict[str, Measured], absent: dict[str, str]) -> list[Row]:
    """The rows of one case: measured contenders with all their numbers, absent ones with the reason."""
    moved = case.moved(inputs) if case.moved else None
    flops = case.flops(inputs) if case.flops else None
    copy = measured.get(COPY)
    copy_gbps = _rate(copy.moved, float(np.median(copy.seconds))) if copy else None
    rows = []
    for contender in case.contenders:
        name = contender.name
        if name not in measured:
            rows.append(Row(case.name, name, size, how, absent=absent.get(name, "not measured")))
            continue
        found = measured[name]
        p20, p50, p80 = (_short(1e3 * float(p)) for p in np.quantile(found.seconds, [0.2, 0.5, 0.8]))
        gbps = _rate(found.moved or moved, p50 / 1e3)
        time_ratio, memory_ratio = _ratios(measured.get(case.candidate.name), found)
        row = Row(
            case.name,
            name,
            size,
            how,
            rounds=len(found.seconds),
            p20_ms=p20,
            p50_ms=p50,
            p80_ms=p80,
            gbps=gbps,
            copy_share=_short(gbps / copy_gbps) if gbps and copy_gbps else None,
            gflops=_rate(flops, p50 / 1e3),
            peak_bytes=found.peak_bytes,
            time_ratio=time_ratio,
            memory_ratio=memory_ratio,
            goals=goals_text(case, name, time_ratio, memory_ratio),
        )
        rows.append(row)
    return rows


def _rate(amount: int | None, seconds: float) -> float | None:
    return None if amount is None else _short(amount / seconds / 1e9)


def _short(value: float) -> float:
    """Five significant digits: more is noise."""
    return float(f"{value:.5g}")


def _ratios(ours: Measured | None, other: Measured) -> tuple[float | None, float | None]:
    """Candidate over `other`: time as the median over rounds of the same round's ratio, and peak bytes."""
    if ours is None or ours is other:
        return None, None
    same = len(ours.seconds) == len(other.seconds)
    time = np.median(ours.seconds / other.seconds) if same else np.median(ours.seconds) / np.median(other.seconds)
    memory = ours.peak_bytes / other.peak_bytes if ours.peak_bytes and other.peak_bytes else None
    return _short(float(time)), None if memory is None else _short(memory)


def goals_text(case: Case, contender: str, time_ratio: float | None, memory_ratio: float | None) -> str:
    """Goals against `contender`, each followed by ``met`` or ``MISSED``."""
    told = []
    for goal in case.goals:
        ratio = time_ratio if goal.measure == "time" else memory_ratio
        if goal.peer == contender and ratio is not None:
            told.append(f"{goal.text}: {'met' if ratio <= goal.ratio else 'MISSED'}")
    return "; ".join(told)


def append_rows(path: Path, rows: Sequence[Row], machine: Machine) -> None:
    """Add `rows`, each with the facts of `machine`, to the CSV file `path`; the old content stays, the file is never half-written.

    Raises:
        DataError: `path` is a CSV file with other columns.
        OSError: the disk is full or the folder cannot be written.
    """
    columns = [field.name for field in (*fields(Machine), *fields(Row))]
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if old and old.splitlines()[0].split(",") != columns:
        raise DataError(f"{path} has other columns than this version writes; choose another file with --out or move it away")
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if not old:
        writer.writeheader()
    writer.writerows({**asdict(machine), **asdict(row)} for row in rows)
    write_atomic(path, old + text.getvalue())


def read_rows(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Rows of CSV files as they stand, oldest file first."""
    rows = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as handle:
            rows += list(csv.DictReader(handle))
    return rows
