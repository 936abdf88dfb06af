"""`Team`: the processes that share one pass: which batches are whose, and how their results come together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from fastqat._distributed import World, all_succeed, gather_objects, gather_rows, on_first, world
from fastqat._errors import InputError
from fastqat.selection.scoring.reading import Deal

Processes = Literal["share", "alone"]
T = TypeVar("T")


class Team:
    """The processes of the default group of `torch.distributed`, or this one alone.

    Args:
        processes: ``"share"``: all of the group, each of which makes the same calls; ``"alone"``: this one, whatever group there is.

    Raises:
        InputError: another value.
    """

    def __init__(self, processes: Processes = "share"):
        if processes not in ("share", "alone"):
            raise InputError(f"processes must be 'share' or 'alone'; got {processes!r}")
        self.rank, self.size = world() if processes == "share" else World(0, 1)

    @property
    def deal(self) -> Deal:
        """Which batches are this process's: with whole batches dealt out in turn, all have the shapes that one process would give them."""
        return Deal(self.rank, self.size)

    def step(self) -> AbstractContextManager[None]:
        """Around what every process does by itself: when it fails in one, all raise; see `fastqat._distributed.all_succeed`."""
        return nullcontext() if self.size == 1 else all_succeed()

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value` (anything that pickles), by rank."""
        return [value] if self.size == 1 else gather_objects(value)

    def on_first(self, call: Callable[[], T]) -> T:
        """What ``call()`` gives in process 0, where alone it runs."""
        return call() if self.size == 1 else on_first(call)

    def positions(self, spans: list[tuple[int, int]]) -> list[Tensor]:
        """Each process's data-set indices in the order in which it scored them; `spans`: start and length of this one's batches."""
        if self.size == 1:
            return []
        ranges = [torch.arange(start, start + length) for start, length in spans]
        return gather_rows(torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64))

    def in_order(self, rows: Tensor, positions: list[Tensor]) -> Tensor:
        """All processes' `rows` ``[n_r, ...]`` in data-set order on the CPU; `positions` as `positions` gave them."""
        if self.size == 1:
            return rows.cpu()
        parts = gather_rows(rows)
        out = rows.new_empty((sum(map(len, parts)), *rows.shape[1:]), device="cpu")
        for place, part in zip(positions, parts, strict=True):
            out[place] = part
        return out
