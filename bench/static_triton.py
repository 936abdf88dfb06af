"""Compiles Triton kernels ahead of time, for any architecture and without a GPU, and asks the assembler what they use."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import ptx
from .static_row import Compiled, Expected


def reason() -> str | None:
    """None when kernels can be compiled here, else why not."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return "TRITON_INTERPRET=1 is set, which replaces the compiler" if os.environ.get("TRITON_INTERPRET", "0") == "1" else None


Place = str | tuple[int, ...]  # an argument by name, or an element of a tuple of arguments by its indices


@dataclass(frozen=True)
class Variant:
    """One way in which a kernel is launched.

    Args:
        kernel: what ``triton.jit`` returned.
        name: of the variant, for people.
        types: argument → Triton type (``"*fp32"``, ``"i32"``), or ``"constexpr"``; a tuple of types for a tuple.
        constants: argument → value, for those.
        aligned: arguments that are multiples of 16.
        options: ``num_warps`` and the like.
        tensors: full-size tensor → bytes of an element, the written one last; none for a kernel that reads only partial sums. ``"*table"``
            stands for all whose addresses are read from the argument `table`.
        bits: width of an access to them where the tile lies whole inside.
        ideal: bytes per element; None: each of `tensors` once.
        written: False: all `tensors` are read, and only loads are judged.
        branches: single elements are read as well, such as the logit of the target: only the widest accesses count.
    """

    kernel: Any
    name: str
    types: Mapping[str, Any]
    constants: Mapping[Place, Any]
    aligned: frozenset[Place] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, int] = field(default_factory=dict)
    bits: int = 128
    ideal: int | None = None
    written: bool = True
    branches: bool = False

    def root(self, name: str) -> str:
        """Where PTX says that the addresses of the tensor `name` come from."""
        parameters = [each for each, types in self.types.items() for type in _leaves(types) if type != "constexpr"]
        return "*" * name.count("*") + str(parameters.index(name.lstrip("*")))


def _leaves(types: Any) -> Iterator[str]:
    """The types in a type, which may be a tuple of them."""
    if isinstance(types, tuple):
        for each in types:
            yield from _leaves(each)
    else:
        yield types


def binary_of(variant: Variant, arch: int) -> Any:
    """What triton compiles the variant to for compute capability `arch` (90 is 9.0)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.types)
    attributes = {(names.index(place),) if isinstance(place, str) else place: [["tt.divisibility", 16]] for place in variant.aligned}
    source = ASTSource(variant.kernel, signature=dict(variant.types), constexprs=dict(variant.constants), attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(variant.options))


def compiled(variant: Variant, arch: int) -> Compiled:
    """The variant's PTX for compute capability `arch`, read, with what ptxas says of it."""
    binary = binary_of(variant, arch)
    (kernel,) = ptx.kernels(binary.asm["ptx"])
    log = assemble(binary.asm["ptx"], arch, fuse=binary.metadata.enable_fp_fusion)
    used = ptx.resources(log)[kernel.name]
    tensors = {variant.root(name): size for name, size in variant.tensors.items()}
    expected = Expected(tensors, variant.bits, variant.ideal, branches=variant.branches, written=variant.written)
    resources = ptx.Resources(used.registers, used.spills, used.stack, shared=binary.metadata.shared)
    return Compiled(variant.kernel.__name__, variant.name, arch, kernel, resources, expected)


def assemble(text: str, arch: int, *, fuse: bool) -> str:
    """What the ptxas that comes with triton reports for `text`, assembled as triton does.

    Raises:
        RuntimeError: it does not assemble.
    """
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(text)
        fusion = [] if fuse else ["--fmad=false"]
        command = [get_ptxas(arch).path, "-v", *fusion, f"--gpu-name={sm_arch_from_capability(arch)}", str(source), "-o", f"{folder}/out"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas refused a kernel for sm_{arch}: {done.stderr.strip()[:500]}")
    return done.stderr + done.stdout
