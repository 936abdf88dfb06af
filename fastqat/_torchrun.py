"""The start of several processes by torchrun, and their common end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache

import torch
import torch.distributed as dist

from fastqat._distributed import KEPT, World, one_line, timeout, world
from fastqat._errors import InputError, ProcessError

# The wait, in seconds, for the others to fail too, so that all exit by themselves before torchrun ends those that are left.
_LEAVE = 3.0


def took_part() -> bool:
    """Whether `started` made this process one of several."""
    return bool(KEPT)


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
def first_speaks() -> Iterator[None]:
    """Of several processes only the first writes to stdout and stderr in the block; an error is printed after it."""
    if world().rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def started() -> Iterator[World]:
    """Run the block in the process group of torchrun's environment: gloo for tensors on the CPU, nccl for those on GPUs.

    Without torchrun, or where a group is there already, the block runs as it is. When it fails, the first process to fail raises its
    error as it is, and the others raise `ProcessError` with ``told=True``, so that one message is enough. All wait a moment for each
    other before they leave. No exchange waits longer than `timeout`.

    Raises:
        InputError: the environment is not that of torchrun, or has a wrong FASTQAT_TIMEOUT, or the processes cannot reach each other.
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
    backend, longest = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo", timeout()
    try:
        store, rank, size = _meeting()
        mine = dist.PrefixStore(f"fastqat/{len(KEPT)}", store)  # a second start must not find the addresses of the first
        dist.init_process_group(backend, store=dist.PrefixStore("group", mine), rank=rank, world_size=size, timeout=longest)
        KEPT.append(dist.group.WORLD)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        told = f"the environment says WORLD_SIZE={asked_for()}, but the processes cannot find each other ({reason})"
        raise InputError(f"{told}; start them with torchrun, or unset WORLD_SIZE") from error
    return mine


@cache
def _meeting() -> tuple[dist.Store, int, int]:
    """The store where the processes of torchrun meet, this process's rank, and their number."""
    return next(dist.rendezvous("env://", timeout=timeout()))


def _end(store: dist.Store, error: BaseException) -> str | None:
    """Tell the others of `error`, leave the group, and wait for them to fail too; the message of one that failed before, else None.

    The first to tell may be one that only heard of the failure, in `all_succeed`: it tells in the name of the one that failed.
    """
    here = world()
    told, failed = f"process {here.rank} of {here.size} failed: {one_line(error)}", here.rank
    if isinstance(error, ProcessError):
        told, failed = str(error), here.rank if error.rank is None else error.rank
    rank = ""
    with suppress(RuntimeError):  # the store is gone with its process
        rank, _, told = store.compare_set("failed", "", f"{failed} {told}").decode().partition(" ")
    with suppress(RuntimeError):
        KEPT[-1].abort()  # nccl would first wait for what the others will not do
    dist.destroy_process_group()
    with suppress(RuntimeError):
        deadline, left = time.monotonic() + _LEAVE, store.add("left", 1)
        while left < here.size and time.monotonic() < deadline:
            time.sleep(0.02)
            left = store.add("left", 0)
    return told if rank not in ("", str(here.rank)) else None
