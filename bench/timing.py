"""Timing of several callables against each other: interleaved, so that a slow minute of the machine hits all of them alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

BLOCK_SECONDS = 0.01  # a block of calls lasts about this long: far above the resolution of the clock
MOST_ROUNDS = 200

Clock = Callable[[Callable[[], object], int], list[float]]  # what to call, how often in a row → seconds of each call


@contextmanager
def no_collection() -> Iterator[None]:
    """The garbage collector waits until the block ends."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def host(call: Callable[[], object], times: int) -> list[float]:
    """Seconds of each call by the clock of the host."""
    return [_once(call) for _ in range(times)]


def _once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _block(call: Callable[[], object], times: int, clock: Clock) -> float:
    """Median seconds of `times` calls in a row, each timed by itself: a call that another process interrupts does not count.

    Before a block of several, one call is made untimed, so that none pays for the caches that another contender left behind.
    """
    if times > 1:
        call()
    return float(np.median(clock(call, times)))


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, budget: float, least_rounds: int, clock: Clock = host
) -> dict[str, np.ndarray]:
    """Seconds per call of each callable, one value per round: name → [rounds].

    Every round runs a block of calls of each in turn and starts with another one, so the order favours none.

    Args:
        calls: what to time; each is called twice or more before the clock starts.
        budget: seconds for all rounds together; at least `least_rounds` are run whatever they take.
        least_rounds: enough for the quantiles to mean something.
        clock: the host's, or one of `gpu_timing`.

    Example:
        >>> times = interleaved({"sum": lambda: sum(range(1000)), "nothing": lambda: None}, budget=0, least_rounds=3)
        >>> {name: len(seconds) for name, seconds in times.items()}
        {'sum': 3, 'nothing': 3}
    """
    typical = {name: _warm(call, clock) for name, call in calls.items()}
    blocks = {name: max(1, math.ceil(BLOCK_SECONDS / seconds)) for name, seconds in typical.items()}
    per_round = sum(typical[name] * (times + (times > 1)) for name, times in blocks.items())
    rounds = max(least_rounds, min(MOST_ROUNDS, int(budget / per_round)))
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    with no_collection():
        for turn in range(rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                times[name].append(_block(calls[name], blocks[name], clock))
    return {name: np.array(values) for name, values in times.items()}


def _warm(call: Callable[[], object], clock: Clock) -> float:
    """Call until compilers, caches and allocators are warm; return the seconds of the fastest call but the first, at least 1 µs."""
    seconds = [_block(call, 1, clock) for _ in range(2)]
    if seconds[-1] < 0.1:
        seconds += [_block(call, 1, clock) for _ in range(3)]
    return max(1e-6, min(seconds[1:]))
