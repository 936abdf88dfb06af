"""Rows about single runs, read from their directories: what says which run it was, and the file that they go to."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastqat._errors import DataError, FastqatError
from fastqat._files import write_csv
from fastqat.train.report.folder import Run

from .rows import read_rows

FACTS = ("data", "model", "qconfig", "select", "loss", "fraction", "label_noise", "seed")


def facts_of(run: Run) -> dict[str, Any]:
    """Study (the folder that the run lies in), cell (its name without ``-seedN``) and the settings that figures go by."""
    cell = re.sub(r"-seed\d+$", "", run.name)
    return {"study": run.path.parent.name, "cell": cell, **{name: run.config.get(name, "") for name in FACTS}}


def keep(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` to `path` beside those of other runs that are there; rows of the same study, cell and seed are replaced.

    Raises:
        DataError: `path` has other columns.
    """
    new = {_key(row) for row in rows}
    old = [row for row in read_rows([path]) if _key(row) not in new] if path.is_file() else []
    if old and list(old[0]) != list(rows[0]):
        raise DataError(f"{path} has other columns than this version writes; choose another file with --out or move it away")
    write_csv(path, list(rows[0]), sorted([*old, *rows], key=_key))


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return str(row["study"]), str(row["cell"]), int(row["seed"])


def write_rows_of(paths: Iterable[Path], out: Path, rows_of: Callable[[Path], list[dict[str, Any]]]) -> int:
    """Write ``rows_of(run directory)`` of each path to `out`, run by run; says which run has none and why. Returns the exit code."""
    failed = False
    for path in paths:
        try:
            rows = rows_of(path)
            if rows:
                keep(out, rows)
        except (FastqatError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"{path}: {len(rows)} rows", flush=True)
    return int(failed)
