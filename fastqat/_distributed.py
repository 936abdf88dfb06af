"""Several processes: which one this is, and the few exchanges that selection and training need. One process exchanges nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class World(NamedTuple):
    """The default process group of `torch.distributed`: this process's `rank` of `size`; 0 of 1 where none is initialised."""

    rank: int
    size: int


def world() -> World:
    """Where this process stands."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


def _device() -> torch.device:
    """Where the backend of the default group exchanges tensors: the current GPU for nccl, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")


def gather_rows(part: Tensor) -> list[Tensor]:
    """Every process's rows, by rank, on all of them: `part` ``[n_r, ...]`` → CPU tensors ``[n_0, ...], [n_1, ...], ...``.

    All processes call it, with the same dtype and the same trailing shape; the numbers of rows may differ and may be 0. Exactly `n_r` rows
    of each come back: nothing is padded in the result.
    """
    here = world()
    if here.size == 1:
        return [part.cpu()]
    device = _device()
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(here.size)]
    dist.all_gather(counts, torch.tensor([len(part)], device=device))
    lengths = [int(count) for count in counts]
    padded = part.new_zeros((max(lengths), *part.shape[1:]), device=device)
    padded[: len(part)] = part.to(device)
    parts = [torch.empty_like(padded) for _ in range(here.size)]
    dist.all_gather(parts, padded)
    return [rows[:length].cpu() for rows, length in zip(parts, lengths, strict=True)]


def from_first(value: Any) -> Any:
    """Process 0's `value` (anything that pickles) on all of them; all processes call it."""
    if world().size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
