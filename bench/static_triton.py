"""Compiles Triton kernels ahead of time, for any architecture and without a GPU, and asks the assembler what they use."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Mapping
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


@dataclass(frozen=True)
class Variant:
    """One way in which a kernel is launched.

    Args:
        kernel: what ``triton.jit`` returned.
        name: of the variant, for people.
        types: argument → Triton type (``"*fp32"``, ``"i32"``), or ``"constexpr"``.
        constants: argument → value, for those.
        aligned: arguments that are multiples of 16.
        options: ``num_warps`` and the like.
        tensors: full-size tensor → bytes of an element, the written one last; none for a kernel that reads only partial sums. ``"*table"``
            stands for all whose addresses are read from the argument `table`.
        bits: width of an access to them where the tile lies whole inside.
        ideal: bytes per element; None: each of `tensors` once.
    """

    kernel: Any
    name: str
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, int] = field(default_factory=dict)
    bits: int = 128
    ideal: int | None = None

    def root(self, name: str) -> str:
        """Where PTX says that the addresses of the tensor `name` come from."""
        parameters = [each for each, type in self.types.items() if type != "constexpr"]
        return "*" * name.count("*") + str(parameters.index(name.lstrip("*")))


def compiled(variant: Variant, arch: int) -> Compiled:
    """The variant's PTX for compute capability `arch` (90 is 9.0), read, with what ptxas says of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.types)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(variant.kernel, signature=dict(variant.types), constexprs=dict(variant.constants), attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(variant.options))
    (kernel,) = ptx.kernels(binary.asm["ptx"])
    log = assemble(binary.asm["ptx"], arch, fuse=binary.metadata.enable_fp_fusion)
    used = ptx.resources(log)[kernel.name]
    expected = Expected({variant.root(name): size for name, size in variant.tensors.items()}, variant.bits, variant.ideal)
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
