"""Reads PTX and ptxas' report: which global accesses a kernel makes, how wide they are, through which pointer, and what it spills."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)[^{;]*\{(.*?)^\}", re.DOTALL | re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*(@!?%\w+\s+)?([a-z][\w.:]*)\s+(.*);\s*$")
_PARAMETER = re.compile(r"\[\s*(%rd\d+|[\w$]+_param_\d+)\s*(?:\+\s*(-?\d+))?\s*\]")
_PARAMETER_NAME = re.compile(r"^\s*[\w$]+_param_(\d+)$")
_IMMEDIATE = re.compile(r",\s*(-?\d+)$")
_REGISTER = re.compile(r"%rd\d+")
MOST_PASSES = 20  # over a kernel; addresses of parameters that a loop moves on never settle


@dataclass(frozen=True)
class Access:
    """One instruction that reads or writes global memory.

    `guarded`: under a predicate, such as the mask of a tile that reaches over the end. `roots`: where its address comes from: ``"2"`` is
    the third parameter of the kernel, ``"0+16"`` the field at byte 16 of a struct, ``"*1"`` an address that was itself loaded through
    the second parameter; integers that enter the address are in it too.
    """

    kind: Literal["load", "store"]
    bits: int
    guarded: bool
    roots: frozenset[str]


@dataclass(frozen=True)
class Kernel:
    """One entry of a PTX module: its global accesses, and how many atomic and local-memory instructions it has."""

    name: str
    accesses: tuple[Access, ...]
    atomics: int
    local: int

    def through(self, root: str, kind: str | None = None) -> list[Access]:
        """The accesses through parameter `root`, of one kind or both."""
        return [access for access in self.accesses if root in access.roots and kind in (None, access.kind)]


@dataclass(frozen=True)
class Resources:
    """What ptxas says of one entry; `spills`: bytes stored and loaded because registers ran out, and `stack`: bytes of its stack frame."""

    registers: int
    spills: int
    stack: int
    shared: int


def kernels(ptx: str) -> list[Kernel]:
    """The entries of a PTX module.

    Example:
        >>> (kernel,) = kernels('''
        ... .visible .entry twice(.param .u64 twice_param_0, .param .u64 twice_param_1) {
        ... ld.param.u64 %rd1, [twice_param_0];
        ... ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];
        ... ld.param.u64 %rd2, [twice_param_1];
        ... st.global.f32 [%rd2+4], %f1;
        ... }
        ... ''')
        >>> [(access.kind, access.bits, *access.roots) for access in kernel.accesses]
        [('load', 128, '0'), ('store', 32, '1')]
    """
    return [_kernel(name, body) for name, _, body in _ENTRY.findall(ptx)]


def _kernel(name: str, body: str) -> Kernel:
    instructions = list(_instructions(body))
    roots = _address_roots(instructions)
    found = [_access(each, roots) for each in instructions]
    heads = [each.opcode.split(".") for each in instructions]
    return Kernel(
        name,
        tuple(access for access in found if access is not None),
        atomics=sum(head[0] in ("atom", "red") and "shared" not in head for head in heads),
        local=sum(head[0] in ("ld", "st") and "local" in head for head in heads),
    )


class _Instruction(NamedTuple):
    guarded: bool
    opcode: str
    operands: str


def _instructions(body: str) -> Iterator[_Instruction]:
    for line in body.splitlines():
        match = _INSTRUCTION.match(line.partition("//")[0].rstrip())
        if match:
            yield _Instruction(bool(match[1]), match[2], match[3])


def _address_roots(instructions: list[_Instruction]) -> dict[str, frozenset[str]]:
    """For every 64-bit register the parameters that its value comes from, through moves, sums and loops, until nothing changes.

    A root with ``&`` is the address of a parameter itself, which nvcc takes of structs.
    """
    roots: dict[str, frozenset[str]] = defaultdict(frozenset)
    for _ in range(MOST_PASSES):
        before = dict(roots)
        for _, opcode, operands in instructions:
            target, _, sources = operands.partition(",")
            if opcode.startswith("st.") or not _REGISTER.search(target):
                continue
            new = _origins(opcode, sources, operands, roots)
            for register in _REGISTER.findall(operands.partition("}")[0] if "{" in target else target):
                roots[register] |= new
        if roots == before:
            break
    return roots


def _origins(opcode: str, sources: str, operands: str, roots: dict[str, frozenset[str]]) -> frozenset[str]:
    """Where the result of one instruction comes from."""
    parameter = _PARAMETER.search(operands)
    if opcode.startswith("ld.param") and parameter:
        holder, offset = parameter[1], int(parameter[2] or 0)
        places = [place for place in roots[holder] if "&" in place] if holder.startswith("%") else [f"&{holder.rpartition('_')[2]}"]
        return frozenset(_moved(place, offset).lstrip("&") for place in places)
    named = _PARAMETER_NAME.search(sources)
    if named:
        return frozenset({f"&{named[1]}"})
    address = operands[operands.rfind("[") :] if opcode.startswith("ld.") else sources
    found = frozenset[str]().union(*(roots[register] for register in _REGISTER.findall(address)))
    if opcode.startswith("ld.global"):
        return frozenset(f"*{root.lstrip('*')}" for root in found)
    step = _IMMEDIATE.search(sources)
    return frozenset(_moved(root, int(step[1])) if "&" in root and opcode.startswith("add") and step else root for root in found)


def _moved(place: str, offset: int) -> str:
    """The address `place` of a parameter, `offset` bytes on."""
    number, _, before = place.partition("+")
    total = int(before or 0) + offset
    return f"{number}+{total}" if total else number


def _access(instruction: _Instruction, roots: dict[str, frozenset[str]]) -> Access | None:
    guarded, opcode, operands = instruction
    parts = opcode.split(".")
    if opcode.startswith("cp.async.c") and "global" in parts:
        _, source, size, *_ = (part.strip() for part in operands.split(","))
        return Access("load", 8 * int(size, 0), guarded, _roots_of(source, roots))
    if parts[0] not in ("ld", "st") or "global" not in parts:
        return None
    address = operands[operands.index("[") : operands.index("]") + 1]
    lanes = next((int(part[1:]) for part in parts if re.fullmatch(r"v\d", part)), 1)
    bits = lanes * int(re.sub(r"\D", "", parts[-1]))
    return Access("load" if parts[0] == "ld" else "store", bits, guarded, _roots_of(address, roots))


def _roots_of(address: str, roots: dict[str, frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*(roots[register] for register in _REGISTER.findall(address)))


def resources(log: str) -> dict[str, Resources]:
    """What ``ptxas -v`` reported, by entry.

    Example:
        >>> resources('''ptxas info    : Compiling entry function 'twice' for 'sm_90'
        ... ptxas info    : Function properties for twice
        ...     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
        ... ptxas info    : Used 14 registers, used 1 barriers, 64 bytes smem''')
        {'twice': Resources(registers=14, spills=16, stack=8, shared=64)}
    """
    found = {}
    for text in log.split("Compiling entry function '")[1:]:
        name = text.partition("'")[0]
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        registers, shared = re.search(r"Used (\d+) registers", text), re.search(r"(\d+) bytes smem", text)
        found[name] = Resources(
            int(registers[1]) if registers else 0,
            spills=sum(int(stores) + int(loads) for _, stores, loads in frames),
            stack=max((int(stack) for stack, _, _ in frames), default=0),
            shared=int(shared[1]) if shared else 0,
        )
    return found
