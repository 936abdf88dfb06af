"""Measuring a case: every contender that can run here, interleaved, then the peak memory of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from . import gpu_timing
from .case import Case, Contender, Size, Work
from .memory import peak_of
from .rows import Measured, Row, amounts_of, rows_of
from .timing import Clock, host, interleaved

# most seconds for the rounds of a case, and the least rounds whatever they take
EFFORT: dict[Size, tuple[float, int]] = {"full": (60.0, 7), "quick": (1.5, 5), "small": (0.0, 1)}

CLOCKS: dict[str, Clock] = {"host": host, "stream": gpu_timing.stream, "cold": gpu_timing.cold}


def clock_of(case: Case) -> Clock:
    """What keeps the time of `case`."""
    return CLOCKS[case.clock or ("stream" if case.device == "cuda" else "host")]


def effort(case: Case, size: Size) -> tuple[float, int]:
    """Seconds for the rounds of `case` and the least number of rounds."""
    most, least = EFFORT[size]
    return min(most, case.seconds), least


def prepare(case: Case, inputs: object) -> tuple[dict[str, Work], dict[str, str]]:
    """Make the contenders and run each once: (works by name, reasons of those that cannot run here).

    A peer that fails is absent with its error as the reason; an error of the candidate is raised.
    """
    works: dict[str, Work] = {}
    absent: dict[str, str] = {}
    for contender in case.contenders:
        reason = contender.reason()
        if reason is None:
            reason = _start(contender, inputs, works, may_fail=contender is not case.candidate)
        if reason is not None:
            absent[contender.name] = reason
    return works, absent


def _start(contender: Contender, inputs: object, works: dict[str, Work], *, may_fail: bool) -> str | None:
    try:
        work = contender.make(inputs)
        work.call()
    except Exception as error:
        if not may_fail:
            raise
        return f"fails here: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
    works[contender.name] = work
    return None


def measure(case: Case, size: Size, said: Callable[[str], None] = lambda _: None) -> list[Row]:
    """The rows of one case; a quick measurement leaves out the peers that are not quick."""
    case = replace(case, peers=tuple(peer for peer in case.peers if peer.quick or size != "quick"))
    inputs = case.setup(size)
    said("preparing")
    works, absent = prepare(case, inputs)
    said("timing")
    budget, least = effort(case, size)
    times = interleaved({name: work.call for name, work in works.items()}, budget=budget, least_rounds=least, clock=clock_of(case))
    said("memory")
    peaks = {name: peak_of(work, case.device) for name, work in works.items()}
    measured = {name: Measured(times[name], peaks[name], work.moved) for name, work in works.items()}
    return rows_of(case, amounts_of(case, inputs), size, "bench", measured, absent)
