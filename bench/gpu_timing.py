"""Clocks for a GPU: what the device takes for one call, and what a stream of calls takes together with the host that launches them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

MOST_CALLS = 50  # in a row: the queue of a stream holds about a thousand launches
QUEUE_CYCLES = 2_000_000  # about a millisecond of the device, in which the host gets ahead of it


def stream(call: Callable[[], object], times: int) -> list[float]:
    """Seconds per call in an unbroken stream of calls, as in training: where launching takes longer than computing, that shows."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * start.elapsed_time(end) for start, end in pairwise(events)]


def cold(call: Callable[[], object], times: int) -> list[float]:
    """Seconds the device takes for each call, its inputs not in the L2 cache and the host ahead of it."""
    times = min(times, MOST_CALLS)
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(times)] for _ in range(2))
    flush = _flush_buffer()
    torch.cuda.synchronize()
    torch.cuda._sleep(QUEUE_CYCLES)
    for start, end in zip(starts, ends, strict=True):
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [1e-3 * start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]


@functools.cache
def _flush_buffer() -> Tensor:
    """Twice the L2 cache: after writing it nothing else is left there."""
    return torch.empty(2 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.int8, device="cuda")
