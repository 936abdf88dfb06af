"""The CUDA kernels as nvcc compiles them, without a GPU: registers, spills, and the width of memory accesses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent


class Kernel(NamedTuple):
    """What ptxas reports of one kernel."""

    stack: int
    spill_stores: int
    spill_loads: int
    registers: int


@pytest.fixture(scope="session")
def cubin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Kernel]]:
    """Every kernel of one tensor, for one architecture, and ptxas' report by kernel."""
    nvcc = shutil.which("nvcc", path=os.path.join(os.environ["CUDA_HOME"], "bin")) if "CUDA_HOME" in os.environ else shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc on PATH or in CUDA_HOME to compile the CUDA kernels")
    target = tmp_path_factory.mktemp("cubin") / "fake_quant.cubin"
    flags = ["-std=c++17", "-O3", "-fmad=false", "-arch=sm_90", "-Xptxas=-v", "-cubin", f"-I{ROOT / 'csrc'}", "-x", "cu"]
    header = ROOT / "csrc/cuda/fake_quant_launch.h"
    done = subprocess.run([nvcc, *flags, str(header), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) reg"
    )
    found = re.findall(report, done.stderr, re.DOTALL)
    return target, {name: Kernel(*map(int, numbers)) for name, *numbers in found}


def test_ptxas_spills_nothing(cubin: tuple[Path, dict[str, Kernel]]) -> None:
    kernels = cubin[1]
    assert len(kernels) == 97  # 3 dtypes × 2 semantics × aligned or not × rows or columns × (values, codes, backward × 2), and the sums
    for name, kernel in kernels.items():
        assert kernel[:3] == (0, 0, 0), f"{name}: {kernel}"
        assert kernel.registers <= 128, f"{name} leaves room for one block of threads only: {kernel}"


def test_accesses_are_128_bits_wide(cubin: tuple[Path, dict[str, Kernel]]) -> None:
    disassembler = shutil.which("cuobjdump")
    if disassembler is None:
        triton = pytest.importorskip("triton", reason="needs cuobjdump, from the CUDA toolkit or from triton")
        disassembler = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    sass = subprocess.run([disassembler, "-sass", str(cubin[0])], capture_output=True, text=True, check=True).stdout
    functions = {text.split()[0]: text for text in sass.split("Function : ")[1:]}
    assert functions.keys() == cubin[1].keys()
    for name, text in functions.items():
        assert not re.search(r"\b(LDL|STL)\b", text), f"{name} uses local memory"
        if re.search(r"(f|__half|__nv_bfloat16)Lb[01]ELb1E", name):  # template arguments: element type, reciprocal, aligned
            assert "LDG.E.128" in text and ("STG.E.128" in text or "Codes" in name), f"{name} has no 128-bit access"
