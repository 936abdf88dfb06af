"""The processes of a study: each imports torch once, keeps the data set, and does one run after another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event
from typing import Any, Literal

import torch

from fastqat._errors import FastqatError
from fastqat.train.config import DATA_FIELDS, TrainConfig
from fastqat.train.outcome import source_commit
from fastqat.train.pool import RunData, prepare_data
from fastqat.train.run import Run, train
from fastqat.train.study_grid import StudyRun

_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
_PATIENCE = 5.0  # seconds that a process that was told to end has before it is killed


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and after how many seconds: ``stopped`` ones go on later, of ``failed`` ones `message` says why."""

    kind: Literal["done", "stopped", "failed"]
    seconds: float
    message: str = ""


class KeptData:
    """`prepare_data` that keeps what it prepared last, for the next run on the same data set."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._data: RunData | None = None

    def __call__(self, config: TrainConfig, device: torch.device) -> RunData:
        key = (device, *(getattr(config, name) for name in DATA_FIELDS))
        if self._data is None or self._key != key:
            self._data = None  # not two at once
            self._data, self._key = prepare_data(config, device), key
        return self._data


class Job:
    """One process of a study and the run that it is at, None between two runs; whether that run trains a float model.

    Args:
        stop: when it is set, the process leaves its run after the epoch that it is in.
    """

    def __init__(self, stop: Event):
        self.connection, theirs = _CONTEXT.Pipe()
        self._stop = stop  # the process opens it by its name, which ends with the last reference here
        self._process = _CONTEXT.Process(target=_work, args=(theirs, stop))
        with _deaf():
            self._process.start()
        theirs.close()
        self.run: StudyRun | None = None
        self.trains = False
        self._since = 0.0

    def begin(self, run: StudyRun, trains: bool = False) -> None:
        """Start `run`, which `trains` a float model first; `connection` can be read when it ended."""
        self.run, self.trains, self._since = run, trains, time.monotonic()
        with contextlib.suppress(OSError):  # the process is gone, which `outcome` tells
            self.connection.send(run.config)

    def check(self, configs: list[TrainConfig]) -> list[str]:
        """What is wrong with each of `configs` that data and model tell before a run begins, empty for nothing; waits for it.

        The data that it loads are those of the runs that follow.
        """
        try:
            self.connection.send(configs)
            return self.connection.recv()
        except (EOFError, OSError):
            return [""] * len(configs)  # the process is gone, which the first run tells

    def outcome(self) -> Outcome:
        """How the run ended; waits for it."""
        self.run = None
        try:
            kind, message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(_PATIENCE)
            kind, message = "failed", f"its process ended with exit code {self._process.exitcode} (killed, or out of memory?)"
        return Outcome(kind, time.monotonic() - self._since, message)

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def end(self) -> None:
        """End the process, whatever it is at: what it has written is whole."""
        self.connection.close()
        self._process.terminate()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start in the block do not hear Ctrl-C, which reaches all processes of a terminal: their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def new_stop() -> Event:
    """The flag that ends the runs of all jobs."""
    return _CONTEXT.Event()


def ended(jobs: list[Job], timeout: float | None) -> list[Job]:
    """Those of `jobs` whose run ended, once there is one or `timeout` seconds have passed."""
    ready = wait([job.connection for job in jobs], timeout)
    return [job for job in jobs if job.connection in ready]


def _work(connection: Connection, stop: Event) -> None:
    """Do the runs that come through `connection`, and check lists of them, until it closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    source_commit()  # remembered now: it is that of the code which this process runs for hours
    data = KeptData()
    while True:
        try:
            asked = connection.recv()
        except (EOFError, OSError):
            return
        connection.send([_fault(config, data) for config in asked] if isinstance(asked, list) else _run(asked, stop, data))


def _end_with_parent() -> None:
    """A process whose parent was killed must not write beside those that a new parent starts."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _fault(config: TrainConfig, data: KeptData) -> str:
    """What is wrong with the run of `config`, as far as that is known before it begins."""
    try:
        Run(config, lambda line: None, data)
    except FastqatError as error:
        return " ".join(str(error).split())
    return ""


def _run(config: TrainConfig, stop: Event, data: KeptData) -> tuple[str, str]:
    """Train; returns how it ended and, of a failure, why. What the trainer says comes when its files are whole: a place to stop."""

    def heed(line: str) -> None:
        if stop.is_set():
            raise KeyboardInterrupt

    try:
        train(config, say=heed, data_of=data)
    except KeyboardInterrupt:
        return "stopped", ""
    except FastqatError as error:
        return "failed", " ".join(str(error).split())
    except Exception as error:  # one run must not end the others
        told = " ".join(str(error).split()) or "no message"
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__}: {told} ({os.path.basename(place.filename)}:{place.lineno})"
    return "done", ""
