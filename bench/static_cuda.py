"""Compiles the .cu files with nvcc, with the flags of setup.py, and reads what they became."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch.utils.cpp_extension import include_paths

from . import ptx
from .static_row import Compiled, Expected

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"float": 4, "__nv_bfloat16": 2, "__half": 2}
# The first three fields of a Job, see csrc/cuda: x, grad_y, and what is written. Kernels for one tensor begin with it, those for many
# with a Batch, whose jobs lie behind the count, the number of blocks and 96 first blocks.
JOBS = {"fake_quant_kernel": 0, "fake_quant_all_kernel": 8 + 8 + 8 * 96}
X, GRAD_Y, OUT = 0, 8, 16
# Kernels of the gradient norms begin with a job too: where its two tensors lie, those of grad_norm in an operand of 184 bytes each.
NORMS = {"grad_norm": (0, 184), "affine_grad_norm": (0, 8)}
# Kernels of rows of any type, whose matrices have 24 bytes each: where those lie that are read.
ROWS = {"scores_kernel": (0, 24), "grand_last_kernel": (0, 24)}


def reason() -> str | None:
    """None when .cu files can be compiled here, else why not."""
    if not (ROOT / "csrc" / "cuda").is_dir():
        return "the sources are not here; run it in a source tree"
    return None if shutil.which("nvcc") else "nvcc is not on PATH"


def flags() -> list[str]:
    """What setup.py gives to nvcc, read from there without running it."""
    values: dict[str, object] = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("STABLE_ABI", "NVCC_FLAGS"):
            exec(compile(ast.Module([node], []), "setup.py", "exec"), values)
    return [str(flag) for flag in values["NVCC_FLAGS"]]  # type: ignore[attr-defined]  # setup.py has a list


def sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def compiled(source: Path, arch: int) -> list[Compiled]:
    """Every kernel of one file for compute capability `arch`.

    Raises:
        RuntimeError: nvcc fails.
    """
    includes = [f"-I{path}" for path in (*include_paths(), ROOT / "csrc")]
    with tempfile.TemporaryDirectory() as folder:
        keep = ["-Xptxas=-v", "--keep", f"--keep-dir={folder}", "-o", f"{folder}/out.cubin"]
        command = ["nvcc", *flags(), *includes, "-cubin", f"-arch=sm_{arch}", *keep, str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc refused {source.name} for sm_{arch}: {done.stderr.strip()[-500:]}")
        text = Path(folder, f"{source.stem}.ptx").read_text()
    used = ptx.resources(done.stderr + done.stdout)
    kernels = ptx.kernels(text)
    readable = demangled([kernel.name for kernel in kernels])
    return [
        Compiled(*name_and_variant(name), arch, kernel, used[kernel.name], expected(name))
        for kernel, name in zip(kernels, readable, strict=True)
    ]


def demangled(names: list[str]) -> list[str]:
    """Names as in the source, without return type, arguments and namespaces; as they are where there is no c++filt."""
    if not shutil.which("c++filt"):
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [re.sub(r"fastqat::|^void |\(.*\)$", "", line.replace("(anonymous namespace)::", "")) for line in done.stdout.splitlines()]


def name_and_variant(name: str) -> tuple[str, str]:
    """A readable name in two: the function, and its template arguments.

    Example:
        >>> name_and_variant("fake_quant_kernel<Rows<Codes<float, true, false> > >")
        ('fake_quant_kernel', 'Rows<Codes<float, true, false> >')
    """
    function, _, rest = name.partition("<")
    return function, rest.rpartition(">")[0].strip()


def expected(name: str) -> Expected:
    """What a kernel's name and template arguments promise: type, reciprocal or not, aligned or not. Codes are of any size.

    Example:
        >>> expected("fake_quant_kernel<Columns<Forward<float, true, true> > >").tensors
        {'0': 4, '0+16': 4}
        >>> expected("grad_norm::direct_kernel<__half, grad_norm::Tile<1, 32, 32, 4, 4, 16, 1> >").tensors
        {'0': 2, '0+184': 2}
        >>> expected("logits::scores_kernel<logits::Way<512, 1, false, true> >").tensors
        {'0': 4, '0+24': 4, '0+48': 4}
    """
    norm = re.match(r"(\w+)::(\w+)_kernel<(\w+)(?:, (\d+)>)?", name)
    if norm and norm[3] in SIZES:
        return _norm(norm[1], norm[2], SIZES[norm[3]], one_by_one=norm[4] == "1")
    rows = re.match(r"\w+::(\w+)(<.*true>)?", name)  # the last template argument: soft targets are read too
    if rows and rows[1] in ROWS:
        offsets = (*ROWS[rows[1]], *([48] if rows[2] else []))
        return Expected({_root(offset): 4 for offset in offsets}, branches=True, written=False)
    found = re.search(r"(Forward|Codes|Backward\w*)<(\w+), \w+, (true|false)", name)
    if not found:
        return Expected({})
    way, size, aligned = found[1], SIZES[found[2]], found[3] == "true"
    fields = {"Forward": (X, OUT), "Codes": (X,)}.get(way, (X, GRAD_Y, OUT))
    tensors = {_root(JOBS[name.partition("<")[0]] + each): size for each in fields}
    return Expected(tensors, 128 if aligned else 8 * size, branches=True, written=way != "Codes")


def _norm(family: str, kernel: str, size: int, one_by_one: bool) -> Expected:
    """Both tensors are read in whole vectors where they lie so, statistics from the first alone; sums are written."""
    offsets = NORMS[family][: 1 if kernel == "standard" else 2]
    return Expected({_root(offset): size for offset in offsets}, 8 * size if one_by_one else 128, branches=True, written=False)


def _root(offset: int) -> str:
    return f"0+{offset}" if offset else "0"
