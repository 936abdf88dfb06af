"""``fastqat train --study FILE.yaml``: a grid of runs, several side by side, that can be cut anywhere and gone on with.

The file::

    base: {data: digits, model: resnet8, epochs: 4}   # settings of all cells
    seeds: 8                                          # 0..7, or a list; each cell is run with each
    float_seeds: 3                                    # float models: seed s starts from that of float seed s % 3; default: one per seed
    cells:
      - {name: rs2, select: rs2}
      - {name: acs, select: acs, loss: [ce, kd], bn_reestimate: [0, 20]}
      - {name: "{select}-{fraction}", select: [el2n, random], fraction: [0.01, 0.1]}

A list of values stands for one cell per value, several lists for all combinations. A cell's name tells them apart: ``{setting}`` in it is
replaced by the value, and the values of lists that it does not name follow it, as in ``acs-ce-bn_reestimate20``. ``{seed}`` and
``{float_seed}`` in a value are replaced too: ``float_checkpoint: weights/resnet20-{float_seed}.pt``. A list in base goes for all cells.
Defaults other than those of ``fastqat train``: threads 1, report and rho false, checkpoint_seconds 5.

Each run is an ordinary one in ``RUNS/<study>/<cell>-seed<k>``, resumed where it was cut. All cells of a seed come before the next seed, so
that a study that is cut short has whole seeds. Runs share the float models of ``RUNS/.float``, also with other studies. Cells start from
the same float model where they agree on what it is trained with: a list over model, float_lr, optimizer, momentum, weight_decay,
augment, amp or label_noise trains a float model for each value, so that cells differ in it as well; that is told at the start.

After each run its row is in ``study_<name>.csv`` and its curve in ``study_<name>_curve.csv`` (see `fastqat.train.study_rows`): in
``results`` beside the folder ``studies`` that the file is in, else in ``RUNS/<study>``. Rows of runs that are not in RUNS are not written
over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from filelock import FileLock, Timeout

from fastqat._distributed import world
from fastqat._errors import DataError, FastqatError, InputError
from fastqat.train.folder import RunFolder
from fastqat.train.report.facts import duration
from fastqat.train.study_checks import check_what_is_there, chosen_runs
from fastqat.train.study_grid import Study, StudyRun, float_differences, read_study
from fastqat.train.study_jobs import Job, ended, new_stop
from fastqat.train.study_rows import StudyRows, differing

_POLL = 0.5  # seconds between two looks at whether a float model is there


def run_study(
    path: Path,
    *,
    runs: Path = Path("runs"),
    jobs: int = 1,
    minutes: float | None = None,
    threads: int | None = None,
    only: str | None = None,
    results: Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run what is left of the study in the file `path`; the same call goes on after it was cut.

    The runs come to the same bits whatever `jobs` is and wherever they were cut; a kill costs each at most an epoch and
    ``checkpoint_seconds``. A run that fails is told and does not stop the others; the next call tries it again. The jobs are processes of
    the spawn method: a script that calls this needs ``if __name__ == "__main__":``.

    Args:
        path: YAML file, see the module.
        runs: folder above the study's folder.
        jobs: runs side by side, each a process of its own.
        minutes: stop after so many, each run at the end of its epoch; 0: start none, only write rows and tell what is left.
        threads: CPU threads of each run, over those of the file.
        only: run the cells that fit one of these patterns, with commas between; rows are those of all.
        results: folder of the rows; None: see the module.
        progress: say a line for each run that ends well too.
        say: told what goes on, line by line.

    Returns:
        The rows of all finished runs.

    Raises:
        InputError: the file, `jobs`, `minutes` or `only` cannot be used, another process runs this study, or rows of other runs are where
            these would go.
        CheckpointError: a run that is there was made with other settings or threads.
        InputError, before anything starts: data or model do not go with the settings of a cell.
        FastqatError: runs failed; the others are done.
    """
    if world().size > 1:
        raise InputError("a study starts its own processes, each with one run; start it without torchrun")
    if jobs < 1 or (minutes is not None and not 0 <= minutes < math.inf):
        raise InputError(f"jobs must be at least 1 and minutes finite and at least 0; got jobs={jobs}, minutes={minutes}")
    study = read_study(path, runs, threads, jobs=jobs, results=results)
    chosen = chosen_runs(study, only)
    check_what_is_there(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(study.folder / ".lock", timeout=0):
            return _StudyLoop(study, chosen, jobs, minutes, say if progress else _nothing, say).go()
    except Timeout as error:
        raise InputError(f"another process is at the study in {study.folder}; wait for it, or choose another folder with runs") from error


def _nothing(line: str) -> None:
    """Where no line per run is wanted."""


class _StudyLoop:
    """A study while it runs: what is left, what each job is at, rows, estimates."""

    def __init__(
        self,
        study: Study,
        chosen: list[StudyRun],
        jobs: int,
        minutes: float | None,
        report: Callable[[str], None],
        say: Callable[[str], None],
    ):
        self.study, self.report, self.say = study, report, say
        self.rows = StudyRows(study.name, differing((run.cell, vars(run.config)) for run in study.runs))
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.stop, self.failed, self.damaged = new_stop(), dict[str, str](), dict[str, str]()
        self.seconds: dict[str, list[float]] = {}  # of training, by cell
        self.extra: list[float] = []  # seconds of a run beside those
        self.floats = {model for run in study.runs if run.is_past_float for model in run.float_models}
        self.left: list[StudyRun] = []
        wanted = {run.label for run in chosen}
        for run in study.runs:
            if RunFolder(run.config.run_dir).read_summary() is not None:
                self._note(run)
            elif run.label in wanted:
                self.left.append(run)
        # First those that are under way: a float model goes on where its training was cut.
        self.left.sort(key=lambda run: not (run.config.run_dir / "config.yaml").is_file())
        self.jobs: list[Job] = []
        self.width = min(jobs, len(self.left))

    def go(self) -> list[dict[str, Any]]:
        """All that is left, or what there is time for."""
        self.say(f"study {self.study.name}: {len(self.study.runs)} runs, {len(self.rows.rows)} done, {self.width} side by side")
        if names := float_differences(self.study.runs):
            self.say(f"not all cells start from the same float model: they differ in {', '.join(names)}")
        try:
            self._check()
            while True:
                self._start()
                busy = [job for job in self.jobs if job.run is not None]
                if not busy:
                    break
                for job in ended(busy, self._patience(busy)):
                    self._end(job)
        finally:
            for job in self.jobs:
                job.end()
        self._conclude()
        return self.rows.rows

    def _check(self) -> None:
        """Let a job check a run of each cell that has none yet: hours may pass before its turn.

        Raises:
            InputError: data or model do not go with the settings of a cell.
        """
        begun = {run.cell for run in self.study.runs if (run.config.run_dir / "config.yaml").is_file()}
        first = {run.cell: run.config for run in reversed(self.left) if run.cell not in begun}
        if not first or self._is_over():
            return
        self.jobs.append(Job(self.stop))
        faults = zip(first, self.jobs[0].check(list(first.values())), strict=True)
        if told := [f"cell {cell!r}: {fault}" for cell, fault in faults if fault]:
            others = f" (and {len(told) - 1} more cells)" if len(told) > 1 else ""
            raise InputError(f"{told[-1]}{others}; nothing was started: mend the file, or choose other cells with only=PATTERN")

    def _is_over(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _start(self) -> None:
        """Give each idle job the next run whose float model no other job is training."""
        if self._is_over():
            self.stop.set()
        if self.stop.is_set():
            return
        for job in [job for job in self.jobs if job.run is None and not job.alive]:
            self.jobs.remove(job)
            job.end()
        while len(self.jobs) < min(self.width, len(self.left) + sum(job.run is not None for job in self.jobs)):
            self.jobs.append(Job(self.stop))
        for job in self.jobs:
            run = self._next() if job.run is None else None
            if run is not None:
                self.left.remove(run)
                job.begin(run, trains=not run.float_models <= self.floats)

    def _next(self) -> StudyRun | None:
        """The first run that needs no float model which a job is training now."""
        busy = [job.run for job in self.jobs if job.run is not None]
        self.floats |= {model for run in busy if run.is_past_float for model in run.float_models}
        training = {model for run in busy for model in run.float_models} - self.floats
        return next((run for run in self.left if training.isdisjoint(run.float_models)), None)

    def _patience(self, busy: Sequence[Job]) -> float | None:
        """Seconds to wait for the end of a run before looking again; None: until then."""
        if self.stop.is_set():
            return None
        if self.left and len(busy) < self.width:
            return _POLL
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _end(self, job: Job) -> None:
        run = job.run
        assert run is not None
        outcome, trained = job.outcome(), job.trains
        if outcome.kind == "stopped":
            self.left.insert(0, run)
        elif outcome.kind == "failed":
            self._fail(run, outcome.message, self.failed)
        else:
            self._done(run, outcome.seconds, trained)

    def _done(self, run: StudyRun, seconds: float, trained: bool) -> None:
        row = self._note(run)
        if row is not None:
            self.extra += [] if trained else [seconds - row["seconds"]]
            self.rows.save(self.study.results)
            self.report(self._line(run, row, seconds))

    def _fail(self, run: StudyRun, message: str, kind: dict[str, str]) -> None:
        kind[run.label] = message
        self.say(f"{run.label} failed: {message}")

    def _note(self, run: StudyRun) -> dict[str, Any] | None:
        """The row of a finished run; None, which is told, when its files are damaged."""
        try:
            row = self.rows.add(run.config.run_dir)
        except DataError as error:
            self._fail(run, str(error), self.damaged)
            return None
        self.seconds.setdefault(run.cell, []).append(row["seconds"])
        return row

    def _line(self, run: StudyRun, row: dict[str, Any], seconds: float) -> str:
        done, total, left = len(self.rows.rows), len(self.study.runs), self._seconds_left()
        text = f"[{done}/{total}] {run.label}: {100 * row['test_accuracy']:.2f} % in {duration(seconds)}"
        return f"{text}; about {duration(left)} left" if left else text

    def _seconds_left(self) -> float:
        """Time of what is left, over the jobs: a cell takes as long as in its other seeds. Float models are not counted."""
        everything = [seconds for found in self.seconds.values() for seconds in found]
        waiting = [*self.left, *(job.run for job in self.jobs if job.run is not None)]
        if not everything or not waiting:
            return 0.0
        extra = max(0.0, median(self.extra)) if self.extra else 0.0
        return sum(extra + mean(self.seconds.get(run.cell, everything)) for run in waiting) / max(1, self.width)

    def _conclude(self) -> None:
        """Write the rows once more, tell what there is and what is left.

        Raises:
            FastqatError: runs failed.
        """
        done, total, left = len(self.rows.rows), len(self.study.runs), len(self.left)
        where = f"rows: {self.rows.save(self.study.results)}" if done else "no rows yet"
        if left:
            estimate = f", about {duration(self._seconds_left())} with {self.width} side by side" if done else ""
            self.say(f"stopped: {done} of {total} runs are done, {left} are left{estimate}; the same command goes on; {where}")
        else:
            self.say(f"{done} of {total} runs are done; {where}")
        if problems := {**self.failed, **self.damaged}:
            label, message = next(iter(problems.items()))
            others = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
            again = "" if self.damaged else "; the same command tries again what failed"
            raise FastqatError(f"{label}{others} failed ({message}){again}")
