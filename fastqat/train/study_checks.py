"""What is checked before a study goes on: runs that are there are of this study, no row is lost, and a pattern names cells."""

from __future__ import annotations

from fnmatch import fnmatchcase

from fastqat._errors import CheckpointError, InputError
from fastqat._files import read_csv
from fastqat.train.folder import RunFolder, saved_config
from fastqat.train.study_grid import Study, StudyRun


def check_what_is_there(study: Study) -> None:
    """Refuse to go on with runs of other settings or threads, and to write over the rows of runs that are elsewhere.

    Raises:
        CheckpointError: a run was started with other settings, or another number of threads: it has another float model for its float seed.
        InputError: the file of rows has some of runs that are not in the study's folder.
    """
    for run in study.runs:
        if RunFolder(run.config.run_dir).may_resume(run.config):
            _check_threads(run)
    _check_rows(study)


def _check_threads(run: StudyRun) -> None:
    saved = saved_config(run.config.run_dir)
    if saved is not None and saved.threads != run.config.threads:
        raise CheckpointError(
            f"run {run.config.run_dir} was started with threads {saved.threads} (now {run.config.threads}), and float models, last bits of "
            f"weights and times go with them; go on with threads={saved.threads}, or start anew with runs=FOLDER"
        )


def _check_rows(study: Study) -> None:
    rows = read_csv(study.rows) if study.rows.is_file() else []
    names = [(row.get("cell"), row.get("seed")) for row in rows]
    if lost := [name for name in names if not (study.folder / "{}-seed{}".format(*name) / "summary.json").is_file()]:
        raise InputError(
            f"{study.rows} has rows of {len(lost)} runs that are not in {study.folder}, {lost[0][0]} seed {lost[0][1]} for one; go on with "
            "the runs that they are of (runs=FOLDER), write rows elsewhere (results=FOLDER), or remove the file"
        )


def chosen_runs(study: Study, only: str | None) -> list[StudyRun]:
    """The runs whose cells fit one of the patterns in `only`, with commas between; None: all.

    Raises:
        InputError: no cell fits.
    """
    patterns = ["*"] if only is None else [pattern.strip() for pattern in only.split(",")]
    if found := [run for run in study.runs if any(fnmatchcase(run.cell, pattern) for pattern in patterns)]:
        return found
    cells = ", ".join(dict.fromkeys(run.cell for run in study.runs))
    raise InputError(f"only must be patterns of names of cells, such as acs*; {only!r} fits none of {cells}")
