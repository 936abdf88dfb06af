"""Several processes: which one this is, their start, and the few exchanges that selection and training need. One process exchanges nothing.

Every exchange is called by all processes in the same order. One that fails because another process is gone raises `ProcessError`; nothing
waits longer than `TIMEOUT`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastqat._errors import FastqatError, InputError, ProcessError

T = TypeVar("T")

# The longest wait for another process. One that dies is noticed at once; this ends the wait for one that hangs.
TIMEOUT = timedelta(minutes=30)
# The wait, in seconds, for the others to fail too, so that all exit by themselves before torchrun ends those that are left.
_LEAVE = 3.0
# Groups that were started, kept to the end of the process: where the last reference is that of DistributedDataParallel, freeing it waits
# with Python's lock for a thread of gloo that waits for the lock.
_KEPT: list[Any] = []


class World(NamedTuple):
    """The default process group of `torch.distributed`: this process's `rank` of `size`; 0 of 1 where none is initialised."""

    rank: int
    size: int


def world() -> World:
    """Where this process stands."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


def took_part() -> bool:
    """Whether `started` made this process one of several."""
    return bool(_KEPT)


def asked_for() -> int:
    """The number of processes that the environment speaks of (torchrun's WORLD_SIZE); 1 without it.

    Raises:
        InputError: WORLD_SIZE is no number.
    """
    processes = os.environ.get("WORLD_SIZE") or "1"
    if not processes.isdecimal():
        raise InputError(f"the environment says WORLD_SIZE={processes}; torchrun sets it to the number of processes; unset it otherwise")
    return int(processes)


@contextmanager
def started() -> Iterator[World]:
    """Run the block in the process group of torchrun's environment: gloo for tensors on the CPU, nccl for those on GPUs.

    Without torchrun, or where a group is there already, the block runs as it is. When it fails, the first process to fail raises its
    error as it is, and the others raise `ProcessError` with ``told=True``, so that one message is enough. All wait a moment for each
    other before they leave.

    Raises:
        InputError: the environment is not that of torchrun, or the processes cannot reach each other.
        ProcessError: another process failed or is gone.
    """
    if (dist.is_available() and dist.is_initialized()) or asked_for() == 1:
        yield world()
        return
    store = _start()
    try:
        yield world()
    except BaseException as error:
        first = _end(store, error)
        if first is None or isinstance(error, SystemExit):
            raise
        raise ProcessError(first, told=True) from error
    dist.destroy_process_group()


def _start() -> dist.Store:
    """Initialise the default group; returns a store of its own beside it, which outlives a process that dies."""
    if not dist.is_available():
        raise InputError("this torch has no torch.distributed; start without torchrun, or install a torch that has it")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = _meeting()
        mine = dist.PrefixStore(f"fastqat/{len(_KEPT)}", store)  # a second start must not find the addresses of the first
        dist.init_process_group(backend, store=dist.PrefixStore("group", mine), rank=rank, world_size=size, timeout=TIMEOUT)
        _KEPT.append(dist.group.WORLD)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        told = f"the environment says WORLD_SIZE={asked_for()}, but the processes cannot find each other ({reason})"
        raise InputError(f"{told}; start them with torchrun, or unset WORLD_SIZE") from error
    return mine


@cache
def _meeting() -> tuple[dist.Store, int, int]:
    """The store where the processes of torchrun meet, this process's rank, and their number."""
    return next(dist.rendezvous("env://", timeout=TIMEOUT))


def _end(store: dist.Store, error: BaseException) -> str | None:
    """Tell the others of `error`, leave the group, and wait for them to fail too; the message of one that failed before, else None."""
    here = world()
    message = str(error) if isinstance(error, ProcessError) else f"process {here.rank} of {here.size} failed: {_one_line(error)}"
    rank, told = "", ""
    with suppress(RuntimeError):  # the store is gone with its process
        rank, _, told = store.compare_set("failed", "", f"{here.rank} {message}").decode().partition(" ")
    with suppress(RuntimeError):
        _KEPT[-1].abort()  # nccl would first wait for what the others will not do
    dist.destroy_process_group()
    with suppress(RuntimeError):
        deadline, left = time.monotonic() + _LEAVE, store.add("left", 1)
        while left < here.size and time.monotonic() < deadline:
            time.sleep(0.02)
            left = store.add("left", 0)
    return told if rank not in ("", str(here.rank)) else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FastqatError) and text else f"{type(error).__name__}: {text}"


@contextmanager
def exchanging() -> Iterator[None]:
    """Run an exchange; when it fails because another process is gone, say so.

    Raises:
        ProcessError: in place of gloo's and nccl's errors.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)
        if isinstance(error, FastqatError) or not lost:
            raise
        here = world()
        raise ProcessError(
            f"process {here.rank} of {here.size} lost contact with another one, which ended or does not answer; look for its message or "
            "for a lack of memory, and start all of them again"
        ) from error


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
        yield
    except Exception as error:
        failure = error
    told = gather_objects(None if failure is None else _one_line(failure))
    if failure is not None:
        raise failure
    for rank, message in enumerate(told):
        if message is not None:
            raise ProcessError(f"process {rank} of {len(told)} failed: {message}")


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
    with exchanging():
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
        with exchanging():
            dist.all_gather_object(values, value)
    return values


def summed(*values: float) -> tuple[float, ...]:
    """The sum of each of `values` over the processes, the same bits on all of them; `values` for one process. Raises as `gather_rows`."""
    rows = gather_rows(torch.tensor([values], dtype=torch.float64))
    return tuple(torch.cat(rows).sum(0).tolist())


def from_first(value: T) -> T:
    """Process 0's `value` (anything that pickles) on all of them; all processes call it. Raises as `gather_rows`."""
    if world().size == 1:
        return value
    box = [value]
    with exchanging():
        dist.broadcast_object_list(box, src=0)
    return box[0]
