"""The CUDA kernels as nvcc compiles them, without a GPU: registers, spills, and the width of memory accesses."""

from __future__ import annotations

import functools
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


class Source(NamedTuple):
    """Kernels of one header: how many there are, and which of them, by their mangled names, access whole vectors where they can."""

    kernels: int
    loads_vectors: str
    stores_vectors: str = "none"


SOURCES = {
    # 3 dtypes × 2 semantics × aligned or not × rows or columns × (values, codes, backward × 2), and the sums;
    # template arguments: element type, reciprocal, aligned
    "fake_quant": Source(97, r"(f|__half|__nv_bfloat16)Lb[01]ELb1E", r"(Forward|Backward).*(f|__half|__nv_bfloat16)Lb[01]ELb1E"),
    "grad_norm": Source(22, "direct|gram|rows"),  # 3 dtypes × (4 direct tiles, 2 of Gram, rows), and the sums
    "affine_grad_norm": Source(13, "standard|rows|columns.*Li[48]E"),  # 3 dtypes × (statistics, rows, 2 of columns), and the sums
    "logit_scores": Source(4, "scores_kernel"),  # rows that are held or read again × soft targets or not; of all dtypes
    "grand_last": Source(1, "grand_last_kernel"),
}


class Built(NamedTuple):
    """The kernels of a header for one architecture, and ptxas' report by kernel."""

    source: Source
    cubin: Path
    kernels: dict[str, Kernel]


@pytest.fixture(scope="session", params=SOURCES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    nvcc = shutil.which("nvcc", path=os.path.join(os.environ["CUDA_HOME"], "bin")) if "CUDA_HOME" in os.environ else shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc on PATH or in CUDA_HOME to compile the CUDA kernels")
    target = tmp_path_factory.mktemp("cubin") / f"{request.param}.cubin"
    flags = ["-std=c++17", "-O3", "-fmad=false", "-arch=sm_90", "-Xptxas=-v", "-cubin", f"-I{ROOT / 'csrc'}", "-x", "cu"]
    header = ROOT / "csrc/cuda" / f"{request.param}_launch.h"
    done = subprocess.run([nvcc, *flags, str(header), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) reg"
    )
    found = re.findall(report, done.stderr, re.DOTALL)
    return Built(SOURCES[request.param], target, {name: Kernel(*map(int, numbers)) for name, *numbers in found})


def test_ptxas_spills_nothing(built: Built) -> None:
    assert len(built.kernels) == built.source.kernels
    for name, kernel in built.kernels.items():
        assert kernel[:3] == (0, 0, 0), f"{name}: {kernel}"
        assert kernel.registers <= 128, f"{name} leaves room for few threads: {kernel}"


@functools.cache
def disassembled(cubin: Path) -> str:
    disassembler = shutil.which("cuobjdump")
    if disassembler is None:
        triton = pytest.importorskip("triton", reason="needs cuobjdump, from the CUDA toolkit or from triton")
        disassembler = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return subprocess.run([disassembler, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout


def sass(built: Built) -> dict[str, str]:
    """The instructions of every kernel."""
    functions = {text.split()[0]: text for text in disassembled(built.cubin).split("Function : ")[1:]}
    assert functions.keys() == built.kernels.keys()
    return functions


def test_accesses_are_128_bits_wide(built: Built) -> None:
    for name, text in sass(built).items():
        assert not re.search(r"\b(LDL|STL)\b", text), f"{name} uses local memory"
        for wanted, access in ((built.source.loads_vectors, "LDG.E.128"), (built.source.stores_vectors, "STG.E.128")):
            assert access in text or not re.search(wanted, name), f"{name} has no {access}"


@pytest.mark.parametrize("built", ["grad_norm"], indirect=True)
def test_tiles_are_multiplied_by_fused_operations(built: Built) -> None:
    """Compiled with -fmad=false, a product would otherwise be two instructions."""
    for name, text in sass(built).items():
        tile = re.search(r"4TileILi\d+ELi\d+ELi\d+ELi(\d+)ELi(\d+)E", name)
        if tile:
            assert text.count("FFMA") >= 4 * int(tile[1]) * int(tile[2]), f"{name} has {text.count('FFMA')} FFMA"
