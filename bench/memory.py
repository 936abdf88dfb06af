"""Peak allocator bytes of a call: from the profiler's allocation events on a CPU, from the caching allocator on a GPU.

Never the resident set of the process, but where a `Work` measures that of one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells its own life on stderr

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .case import Work


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind `tensors`, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def peak_of(work: Work, device: str) -> int:
    """The peak bytes of a call of `work`."""
    return work.peak() if work.peak is not None else peak_bytes(work.call, held_bytes(work.holds()), device)


def peak_bytes(call: Callable[[], object], held: int = 0, device: str = "cpu") -> int:
    """The most bytes that the allocator of `device` had handed out at any moment of ``call()``, `held` from before included.

    Call it once before: what stays allocated after the first time (optimizer state, cached buffers) belongs into `held`.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return held + torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    now = peak = held
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
