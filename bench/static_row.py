"""What the static report says of one compiled kernel, and when that is a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .ptx import Access, Kernel, Resources


@dataclass(frozen=True)
class Expected:
    """What a kernel promises of its full-size tensors.

    Args:
        tensors: parameter (a root of `ptx.Access`) → bytes of an element; the last is written.
        load_bits: width of every load where neither mask nor boundary forces single elements.
        ideal: bytes per element; None: each of `tensors` once. Tensors that are found through a table share one root and count together.
        branches: single elements at boundaries have branches of their own, so that only the widest accesses of a tensor count; branches
            that store what was loaded once count as less than the ideal.
        written: False: what is written has a size that is not known here, and only the loads are judged.
    """

    tensors: Mapping[str, int]
    load_bits: int = 128
    ideal: int | None = None
    branches: bool = False
    written: bool = True

    @property
    def bytes_per_element(self) -> int:
        """The least there can be."""
        return sum(self.tensors.values()) if self.ideal is None else self.ideal

    @property
    def store_bits(self) -> int:
        """Width of every store: as many elements as a load, where those are smaller."""
        sizes = list(self.tensors.values())
        return min(self.load_bits, self.load_bits * sizes[-1] // sizes[0])


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture, parsed, with what the assembler said; `expected` has no tensors for kernels of partial sums."""

    name: str
    variant: str
    arch: int
    kernel: Kernel
    resources: Resources
    expected: Expected

    def whole(self, root: str) -> list[Access]:
        """The accesses of whole tiles through `root`: those without a mask (all, if every one has it), or the widest of each kind."""
        accesses = self.kernel.through(root)
        if not self.expected.branches:
            return [access for access in accesses if not access.guarded] or accesses
        widest = {kind: max((access.bits for access in accesses if access.kind == kind), default=0) for kind in ("load", "store")}
        return [access for access in accesses if access.bits == widest[access.kind]]

    def widths(self, kind: str) -> set[int]:
        """Bits of the whole-tile loads or stores of the full-size tensors."""
        return {access.bits for root in self.expected.tensors for access in self.whole(root) if access.kind == kind}

    @property
    def bytes_per_element(self) -> float | None:
        """Bytes that whole tiles move per element that they write; None without full-size tensors or without a store."""
        if not self.expected.tensors or not self.expected.written:
            return None
        moved = sum(access.bits for root in self.expected.tensors for access in self.whole(root))
        written, size = list(self.expected.tensors.items())[-1]
        stored = sum(access.bits for access in self.whole(written) if access.kind == "store")
        return moved * size / stored if stored else None

    def problems(self) -> list[str]:
        """What breaks the promises, in words; empty when nothing does."""
        told = []
        used = self.resources
        if used.spills or used.stack or self.kernel.local:
            told.append(f"{used.spills} bytes spilled, {used.stack} bytes of stack, {self.kernel.local} local accesses; accepted: none")
        if self.kernel.atomics:
            told.append(f"{self.kernel.atomics} atomic instructions; accepted: none")
        return told + (self._traffic_problems() if self.expected.tensors else [])

    def _traffic_problems(self) -> list[str]:
        told = []
        least_bits = {"load": self.expected.load_bits, **({"store": self.expected.store_bits} if self.expected.written else {})}
        for kind, least in least_bits.items():
            narrow = sorted(bits for bits in self.widths(kind) if bits < least)
            if narrow or not self.widths(kind):
                told.append(f"{kind}s of {', '.join(map(str, narrow)) or 'no'} bits; accepted: {least} and more")
        moved, ideal = self.bytes_per_element, self.expected.bytes_per_element
        if self.expected.written and (moved is None or moved > 1.001 * ideal):
            told.append(f"{moved or 0:.3g} bytes per element; accepted: {ideal}")
        return told
