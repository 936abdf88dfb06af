"""What a benchmark is: data. Nothing here runs anything."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Size = Literal["full", "quick", "small"]
Results = Mapping[str, Tensor]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def _holds_nothing() -> Iterable[Tensor]:
    return ()


@dataclass(frozen=True)
class Work:
    """One thing to time: `call` does it once and returns its results by name.

    `holds` lists what stays allocated between calls; `moved` are the bytes it reads and writes where they are not the case's (a copy).
    `peak` measures the peak bytes in its own way, in place of the allocator's.
    """

    call: Callable[[], Results]
    holds: Callable[[], Iterable[Tensor]] = _holds_nothing
    moved: int | None = None
    peak: Callable[[], int] | None = None


@dataclass(frozen=True)
class Contender:
    """A way to do the work of a case.

    Args:
        name: as it stands in the table.
        make: inputs of the case → `Work`; may build, compile and warm up, none of which is timed.
        reason: None when it can run here, else why not.
        agrees: names of results that must equal the candidate's; None for all, () where it does other work (a copy, a float step).
        quick: part of ``--quick``; False where building it alone takes longer than that.
    """

    name: str
    make: Callable[[Any], Work]
    reason: Callable[[], str | None] = lambda: None
    agrees: tuple[str, ...] | None = None
    quick: bool = True


@dataclass(frozen=True)
class Goal:
    """What must hold between the candidate and `peer`.

    ``"time"``, ``"memory"``: the candidate's time or peak bytes over that of `peer` are at most `ratio`. ``"share"``: the candidate's bytes
    per second over those of `peer`, a copy, are at least `ratio`. ``"beyond"``: the candidate takes at most `ratio` seconds more than
    `peer`. ``"bytes"``: its peak is below `ratio` bytes, whatever that of `peer`.

    Example:
        >>> Goal("x.clone()", 0.9, "share").text, Goal("float", 1.06).text, Goal("eager LSQ", 1 / 3).text
        ('≥ 0.9 of its bandwidth', '≤ 1.06 × its time', '≥ 3 × faster')
        >>> Goal("reading", 60, "beyond").text, Goal("reading", 2**31, "bytes").text
        ('≤ 60 s more', '≤ 2 GiB in all')
    """

    peer: str
    ratio: float
    measure: Literal["time", "memory", "share", "beyond", "bytes"] = "time"

    @property
    def text(self) -> str:
        """The goal in words, to stand beside the peer's name."""
        if self.measure == "share":
            return f"≥ {self.ratio:g} of its bandwidth"
        if self.measure == "memory":
            return f"≤ {self.ratio:g} × its peak bytes"
        if self.measure == "beyond":
            return f"≤ {self.ratio:g} s more"
        if self.measure == "bytes":
            return f"≤ {self.ratio / 2**30:g} GiB in all"
        return f"≤ {self.ratio:g} × its time" if self.ratio >= 1 else f"≥ {1 / self.ratio:g} × faster"

    def met(self, value: float) -> bool:
        """Whether `value`, the ratio (seconds, bytes) that was measured, satisfies the goal."""
        return value >= self.ratio if self.measure == "share" else value <= self.ratio


@dataclass(frozen=True)
class Case:
    """One benchmark: the candidate is fastqat's public function, the peers do the same work otherwise.

    Args:
        name: ``op/variant``; `fastqat bench --filter` looks for a part of it.
        about: what is measured, in a line.
        setup: size → inputs. ``"full"`` for the record, ``"quick"`` for a minute in all, ``"small"`` for the tests of agreement.
        candidate, peers: the contenders; each gets the same inputs.
        moved: inputs → bytes that must cross the memory bus at least once (reads and writes); None where that says nothing.
        flops: inputs → floating point operations; None where memory decides.
        goals: what must hold between the candidate and a peer.
        quick: part of ``--quick``.
        seconds: time for the rounds of a full measurement; a few rounds are run whatever they take.
        device: the kind of device that the case needs, ``"cpu"`` or ``"cuda"``; without one it is left out. On ``"cuda"`` its
            allocator counts the bytes.
        clock: ``"host"``, ``"stream"`` (GPU: an unbroken stream of calls) or ``"cold"`` (GPU: each call alone, with an empty L2 cache);
            None takes the host's on a CPU and the stream's on a GPU.
        tolerance: largest relative root mean square difference between contenders that agree.
    """

    name: str
    about: str
    setup: Callable[[Size], Any]
    candidate: Contender
    peers: tuple[Contender, ...]
    moved: Callable[[Any], int] | None = None
    flops: Callable[[Any], int] | None = None
    goals: tuple[Goal, ...] = ()
    quick: bool = True
    seconds: float = 12.0
    device: Literal["cpu", "cuda"] = "cpu"
    clock: Literal["host", "stream", "cold"] | None = None
    tolerance: float = 1e-5

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """The candidate, then its peers."""
        return (self.candidate, *self.peers)


def needs_package(name: str) -> Callable[[], str | None]:
    """Reason for a peer from another package: None when it is installed."""
    return lambda: None if importlib.util.find_spec(name) is not None else f"{name} is not installed"


def needs_compiler() -> str | None:
    """Reason for a peer under torch.compile on a CPU: None when a C++ compiler is there."""
    return None if any(map(shutil.which, ("c++", "g++", "clang++"))) else "torch.compile needs a C++ compiler on PATH"


def never(reason: str) -> Callable[[], str | None]:
    """Reason for a peer that cannot do this variant at all; the table says so instead of leaving it out."""
    return lambda: reason
