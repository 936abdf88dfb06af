"""Several processes: which one this is, and the few exchanges that selection and training need. One process exchanges nothing.

Every exchange is called by all processes in the same order. One that fails because another process is gone raises `ProcessError`, and so
does every later one of the same group: they would be out of step. Nothing waits longer than the timeout of the group.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastqat._errors import FastqatError, InputError, ProcessError

T = TypeVar("T")

# The longest wait for another process, in seconds, where the environment's FASTQAT_TIMEOUT does not say it. One that dies is noticed at
# once; this ends the wait for one that hangs, and for one that has that much more to do than the others.
TIMEOUT = 1800.0
# Groups that were started, kept to the end of the process: where the last reference is that of DistributedDataParallel, freeing it waits
# with Python's lock for a thread of gloo that waits for the lock.
KEPT: list[Any] = []
# Groups with an exchange that raised: what their processes would exchange next are different things.
_TORN: list[Any] = []
# The file of gloo that a failed exchange names at the start of its message. nccl's errors have a class.
_OF_GLOO = re.compile(r"gloo/\S+\.\w+:\d+\]")


class World(NamedTuple):
    """The default process group of `torch.distributed`: this process's `rank` of `size`; 0 of 1 where none is initialised."""

    rank: int
    size: int


def world() -> World:
    """Where this process stands."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


def timeout() -> timedelta:
    """The longest wait for another process in groups that `started` starts: ``FASTQAT_TIMEOUT`` seconds, 30 minutes without it.

    Raises:
        InputError: FASTQAT_TIMEOUT is no number above 0.
    """
    text = os.environ.get("FASTQAT_TIMEOUT") or str(TIMEOUT)
    with suppress(ValueError, OverflowError):
        if math.isfinite(seconds := float(text)) and seconds > 0:
            return timedelta(seconds=seconds)
    raise InputError(f"the environment says FASTQAT_TIMEOUT={text}; accepted: seconds above 0 to wait for another process, such as 7200")


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FastqatError) and text else f"{type(error).__name__}: {text}"


@contextmanager
def exchanging() -> Iterator[None]:
    """Run a block that exchanges, such as the training of a model in `DistributedDataParallel`.

    Where it raises the processes are out of step: the group is given up, so that no later exchange mixes what does not belong together,
    and that the other processes need not wait for the end of this one. An error of the block's own stays as it is.

    Raises:
        ProcessError: in place of gloo's and nccl's errors, which say that another process is gone; or the group was given up before.
    """
    here = world()
    if any(group is dist.group.WORLD for group in _TORN):
        raise ProcessError(f"process {here.rank} of {here.size} is out of step after an earlier error; start all of them again")
    try:
        yield
    except BaseException as error:
        message = _lost(error)
        _give_up()
        if message is None:
            raise
        raise ProcessError(message) from error


def _lost(error: BaseException) -> str | None:
    """What to say where `error` means that another process is gone; None for all other errors."""
    reason = " ".join(str(error).split())
    if not isinstance(error, dist.DistError) and not (type(error) is RuntimeError and _OF_GLOO.search(reason)):
        return None
    here = world()
    own = any(group is dist.group.WORLD for group in KEPT)
    limit = f"{timeout().total_seconds():g} s (FASTQAT_TIMEOUT)" if own else "the timeout that init_process_group was given"
    return (
        f"process {here.rank} of {here.size} lost contact with another one, which ended, or was waited for longer than {limit}; look for "
        f"its message or for a lack of memory, and start all of them again ({reason[:200]})"
    )


def _give_up() -> None:
    """No more exchanges in the default group; the other processes notice at once, unless `started` has still to tell them why."""
    group = dist.group.WORLD
    if group is None or any(group is torn for torn in _TORN):
        return
    _TORN.append(group)
    if not any(group is own for own in KEPT):
        with suppress(RuntimeError):
            group.abort()
        atexit.register(_leave)


def _leave() -> None:
    """Leave a group that was given up while Python still runs: its threads, when they outlive that, can abort the process."""
    if dist.is_initialized() and any(dist.group.WORLD is torn for torn in _TORN):
        _TORN.clear()
        with suppress(RuntimeError):
            dist.destroy_process_group()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Run an exchange whole: a handler of SIGCHLD is called at its end, and cannot raise.

    That of `DataLoader` raises wherever the program is when a worker was killed. The loader finds that worker at its next batch too.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    calls: list[Any] = []
    signal.signal(signal.SIGCHLD, lambda *call: calls.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
        if calls:
            with suppress(RuntimeError):
                handler(*calls[-1])


@contextmanager
def all_succeed() -> Iterator[None]:
    """Run the block, which exchanges nothing, on every process; when it fails on one, no process goes on.

    Raises:
        ProcessError: another process failed; names it and has its message. A process whose own block failed raises that error.

    Example:
        >>> with all_succeed():
        ...     scores = [1.0, 2.0]
    """
    if world().size == 1:
        yield
        return
    failure: Exception | None = None
    try:
        try:
            yield
        except Exception as error:
            failure = error
        told = gather_objects(None if failure is None else one_line(failure))
    except BaseException:  # a process that is to end, or has lost another, tells nothing
        _give_up()
        if failure is None:
            raise
    if failure is not None:
        raise failure
    for rank, message in enumerate(told):
        if message is not None:
            raise ProcessError(f"process {rank} of {len(told)} failed: {message}", rank=rank)


def on_first(call: Callable[[], T]) -> T:
    """What ``call()`` gives on process 0, where alone it runs, on all of them (it must pickle).

    Raises:
        ProcessError: it failed there; process 0 raises its error as it is.
    """
    result: Any = None
    with all_succeed():
        if world().rank == 0:
            result = call()
    return from_first(result)


def gather_rows(part: Tensor) -> list[Tensor]:
    """Every process's rows, by rank, on all of them: `part` ``[n_r, ...]`` → CPU tensors ``[n_0, ...], [n_1, ...], ...``.

    All processes call it, with the same dtype and the same trailing shape; the numbers of rows may differ and may be 0. Exactly `n_r` rows
    of each come back: nothing is padded in the result.

    Raises:
        ProcessError: another process is gone.
    """
    here = world()
    if here.size == 1:
        return [part.cpu()]
    device = _device()
    with _undisturbed(), exchanging():
        counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(here.size)]
        dist.all_gather(counts, torch.tensor([len(part)], device=device))
        lengths = [int(count) for count in counts]
        padded = part.new_zeros((max(lengths), *part.shape[1:]), device=device)
        padded[: len(part)] = part.to(device)
        parts = [torch.empty_like(padded) for _ in range(here.size)]
        dist.all_gather(parts, padded)
    return [rows[:length].cpu() for rows, length in zip(parts, lengths, strict=True)]


def _device() -> torch.device:
    """Where the default group exchanges what may live anywhere: the CPU, or the current GPU where all it has is nccl."""
    return torch.device("cpu") if "cpu:" in dist.get_backend_config() else torch.device("cuda", torch.cuda.current_device())


def gather_objects(value: Any) -> list[Any]:
    """Every process's `value` (anything that pickles), by rank, on all of them. Raises as `gather_rows`."""
    here = world()
    values = [value] * here.size
    if here.size > 1:
        with _undisturbed(), exchanging():
            dist.all_gather_object(values, value)
    return values


def summed(*values: float) -> tuple[float, ...]:
    """The sum of each of `values` over the processes, the same bits on all of them; `values` for one process. Raises as `gather_rows`."""
    rows = gather_rows(torch.tensor([values], dtype=torch.float64))
    return tuple(torch.cat(rows).sum(0).tolist())


def averaged(values: Tensor, share: float = 1.0) -> Tensor:
    """The mean over the processes of share · `values`, the same bits on all of them, on the device of `values`: the host does not wait.

    Raises as `gather_rows`.
    """
    size = world().size
    if size == 1:
        return values
    values = values * (share / size)
    with _undisturbed(), exchanging():
        dist.all_reduce(values)
    return values


def from_first(value: T) -> T:
    """Process 0's `value` (anything that pickles) on all of them; all processes call it. Raises as `gather_rows`."""
    if world().size == 1:
        return value
    box = [value]
    with _undisturbed(), exchanging():
        dist.broadcast_object_list(box, src=0)
    return box[0]
