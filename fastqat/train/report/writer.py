"""From run directories to pages and tables: the functions that a user calls."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastqat._errors import FastqatError, InputError
from fastqat._files import write_atomic
from fastqat.train.report import facts, page
from fastqat.train.report.folder import Run, read_run
from fastqat.train.report.selection_facts import PICTURES, chosen_and_dropped


def write_report(run_dir: str | Path) -> Path:
    """Write ``figures/*.png`` and a self-contained ``report.html`` into a run directory and return the path of the page.

    Only the run directory is read, so the report of an old run, of one that stopped half-way or of one that selected nothing can be
    written at any time; parts without data are left out or say so.

    Args:
        run_dir: a folder that ``fastqat train`` wrote.

    Raises:
        InputError: `run_dir` is no run directory.
        FastqatError: matplotlib is not installed.
        OSError: the disk is full or the folder cannot be written.

    Example:
        >>> write_report("no/such/run")
        Traceback (most recent call last):
        fastqat._errors.InputError: no/such/run does not exist; pass a run directory such as runs/<name>, written by `fastqat train`
    """
    run = read_run(run_dir)
    sections = [_figure_section(run, saved) for saved in _drawing().draw_run(run)]
    if not run.selections:
        sections.append(page.Section("selection", "Selection", page.paragraph(facts.why_no_selection(run))))
    sections += [_config_section(run), page.Section("again", "How to run this again", facts.reproduction(run))]
    opening = "".join(page.paragraph(note, "note") for note in facts.warnings(run)) + page.cards(facts.headline(run))
    target = run.path / "report.html"
    write_atomic(target, page.render(run.name, facts.sentence(run), opening, sections, facts.footer(run)))
    return target


def _drawing() -> ModuleType:
    """The figures' module: matplotlib is needed here and nowhere else."""
    try:
        return importlib.import_module("fastqat.train.report.figures")
    except ModuleNotFoundError as error:
        raise FastqatError(f"a report needs {error.name}, which is not installed; run: pip install 'fastqat[train]'") from error


def _figure_section(run: Run, saved: Any) -> page.Section:
    body = page.figure(saved.uri, saved.title, saved.caption)
    return page.Section(saved.stem, saved.title, body + facts.epoch_table(run) if saved.stem == "curves" else body)


def _config_section(run: Run) -> page.Section:
    body = page.code(run.config_text, columns=True) if run.config_text else page.paragraph("This run has no config.yaml.")
    return page.Section("config", "Configuration", body)


def pick_pictures(indices: Any, scores: Any = None, count: int = PICTURES) -> list[int]:
    """The samples whose pictures a report shows for one selection: the first `count` chosen, then the first `count` dropped.

    Args:
        indices: selected samples, best first, int [k], as indices into the pool.
        scores: one score [pool], or a mapping name → score [pool]; the one that the selection followed is found by itself, as is its
            direction. None: nothing is known about what was dropped, so only the chosen are returned.
        count: most pictures of each kind.

    Returns:
        Indices into the pool, at most ``2 * count``.

    Example:
        >>> pick_pictures([4, 1], [0.1, 0.8, 0.3, 0.2, 0.9], count=2)
        [4, 1, 0, 3]
    """
    named = scores if hasattr(scores, "keys") else {} if scores is None else {"score": scores}
    chosen, dropped = chosen_and_dropped(np.asarray(indices), {name: np.asarray(named[name]) for name in named}, count)
    return chosen + dropped


def comparison_table(run_dirs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One row of facts per run, in the order given: what was run, what it reached and what it cost; None where a run does not say.

    Keys: those of `facts.COLUMNS`: run, dataset, model, qconfig, select, fraction, loss, seed, accuracies as fractions of 1, seconds, …

    Raises:
        InputError: no run is given, or a folder is no run directory.
    """
    return [facts.row(run) for run in _read_runs(run_dirs)]


def comparison_lines(run_dirs: Sequence[str | Path]) -> list[list[str]]:
    """The rows of `comparison_table` as text for people: a header, then one line per run, columns that say nothing left out."""
    header, lines, _ = facts.readable(_read_runs(run_dirs))
    return [header, *lines]


def write_comparison(run_dirs: Sequence[str | Path], path: str | Path) -> Path:
    """Write one self-contained page that compares runs, a table and their curves on top of each other, and return its path.

    Raises:
        InputError: no run is given, or a folder is no run directory.
        OSError: the disk is full or `path` cannot be written.
    """
    runs, target = _read_runs(run_dirs), Path(path)
    header, lines, best = facts.readable(runs)
    sections = [page.Section("table", "Results", page.table(header, lines, best=best) + page.paragraph(facts.TABLE_CAPTION))]
    saved = _drawing().draw_comparison(runs, target)
    if saved is not None:
        sections.append(page.Section("curves", saved.title, page.figure(saved.uri, saved.title, saved.caption)))
    write_atomic(target, page.render("Comparison of runs", facts.comparison_sentence(runs), "", sections, facts.footer(runs[0])))
    return target


def _read_runs(run_dirs: Sequence[str | Path]) -> list[Run]:
    if isinstance(run_dirs, str | Path) or not run_dirs:
        raise InputError(f"a comparison needs a list of run directories, got {run_dirs!r}; pass e.g. [runs/random, runs/acs]")
    return [read_run(path) for path in run_dirs]
