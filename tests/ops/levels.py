"""One call under every instruction set of this CPU and several numbers of threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def at_every_level(call: Callable[[], Result], threads: Iterable[int] = (1, 2, 3)) -> list[Result]:
    """What `call` returns under each; threads and level are put back."""
    from fastqat import _C

    threads_before, level_before = torch.get_num_threads(), _C.cpu_level()
    results = []
    try:
        for count, level in itertools.product(threads, _C.build_info()["cpu_levels"].split()):
            try:
                _C.set_cpu_level(level)
            except RuntimeError:  # not on this CPU
                continue
            torch.set_num_threads(count)
            results.append(call())
    finally:
        torch.set_num_threads(threads_before)
        _C.set_cpu_level(level_before)
    return results
