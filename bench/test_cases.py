"""Every case under pytest-benchmark: first that the contenders agree on a small input, then their times."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from .agreement import disagreements
from .case import Case, Contender, Size
from .measure import effort
from .memory import peak_of
from .registry import chosen
from .rows import Measured, amounts_of

PAIRS = [pytest.param(case, contender, id=f"{case.name}-{contender.name}") for case in chosen() for contender in case.contenders]


@functools.lru_cache(maxsize=1)
def inputs_of(name: str, size: Size) -> Any:
    """The inputs of the case in progress; the last one's are freed."""
    return next(case for case in chosen() if case.name == name).setup(size)


def _skip_if_absent(contender: Contender) -> None:
    reason = contender.reason()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(("case", "contender"), PAIRS)
def test_agreement(case: Case, contender: Contender) -> None:
    _skip_if_absent(contender)
    ours = case.candidate.make(case.setup("small")).call()
    assert disagreements(case, contender, ours, contender.make(case.setup("small")).call()) == []


@pytest.mark.parametrize(("case", "contender"), PAIRS)
def test_speed(case: Case, contender: Contender, benchmark: Any, collected: Any, pytestconfig: pytest.Config) -> None:
    size: Size = "full" if pytestconfig.getoption("--bench-full") else "quick"
    if size == "quick" and not case.quick:
        pytest.skip("not part of the quick cases; run with --bench-full")
    inputs = inputs_of(case.name, size)
    measured, absent = collected.of(case, amounts_of(case, inputs), size)
    reason = contender.reason()
    if reason is not None:
        absent[contender.name] = reason
        pytest.skip(reason)
    work = contender.make(inputs)
    call = _finished(work.call) if case.device == "cuda" else work.call
    call()
    benchmark.group = case.name
    budget, least = effort(case, size)
    benchmark.pedantic(call, rounds=_rounds(call, budget / len(case.contenders), least), warmup_rounds=1)
    seconds = np.array(benchmark.stats.stats.data)
    measured[contender.name] = Measured(seconds, peak_of(work, case.device), work.moved)
    assert measured[contender.name].seconds.min() > 0


def _finished(call: Callable[[], Any]) -> Callable[[], None]:
    """`call`, and then the GPU is waited for: the clock of pytest-benchmark is the host's."""

    def both() -> None:
        call()
        torch.cuda.synchronize()

    return both


def _rounds(call: Any, budget: float, least: int) -> int:
    """As many rounds as fit into `budget` seconds, from `least` to a thousand."""
    start = time.perf_counter()
    call()
    return max(least, min(1000, int(budget / (time.perf_counter() - start))))
