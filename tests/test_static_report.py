"""The static report: what it reads from PTX and ptxas, what it calls a failure, and that the package's own kernels have none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastqat._bench import static_cuda, static_report
from fastqat._bench.ptx import Kernel, Resources, kernels, resources
from fastqat._bench.static_row import Compiled, Expected

ROOT = Path(__file__).parent.parent
CLEAN = Resources(registers=40, spills=0, stack=0, shared=0)

# A loop over whole tiles, then a masked edge: as triton writes them, inline assembly and all.
TRITON = """
.version 8.4
.target sm_90a
.visible .entry scale(
	.param .u64 .ptr .global .align 1 scale_param_0,
	.param .u64 .ptr .global .align 1 scale_param_1,
	.param .u32 scale_param_2
)
.reqntid 128
{
	ld.param.b64 	%rd1, [scale_param_0];
	ld.param.b64 	%rd2, [scale_param_1];
	ld.param.b32 	%r1, [scale_param_2];
	mul.wide.u32 	%rd3, %r1, 16;
	add.s64 	%rd4, %rd1, %rd3;                  // x_ptr + offsets
	mov.b64 	%rd6, %rd4;
$L__BB0_1:
	// begin inline asm
	ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd6 + 0 ];
	// end inline asm
	add.s64 	%rd5, %rd2, %rd3;
	// begin inline asm
	st.global.v4.b32 [ %rd5 + 0 ], { %r2, %r3, %r4, %r5 };
	// end inline asm
	add.s64 	%rd6, %rd6, 2048;
	@%p1 bra 	$L__BB0_1;
	// begin inline asm
	@%p2 ld.global.b32 { %r6 }, [ %rd6 + 0 ];
	// end inline asm
	// begin inline asm
	@%p2 st.global.b32 [ %rd5 + 0 ], { %r6 };
	// end inline asm
	ret;
}
"""

# Pointers in a struct, found through its address; a table of pointers; an atomic; local memory.
NVCC = """
.visible .entry job(
	.param .align 8 .b8 job_param_0[24]
)
{
	mov.b64 	%rd9, job_param_0;
	ld.param.u64 	%rd1, [%rd9];
	ld.param.u64 	%rd2, [job_param_0+16];
	cvta.to.global.u64 	%rd3, %rd1;
	ld.global.nc.L1::no_allocate.v4.f32 	{%f1, %f2, %f3, %f4}, [%rd3+16];
	cvta.to.global.u64 	%rd4, %rd2;
	st.global.v2.f32 	[%rd4], {%f1, %f2};
	ld.global.v2.u64 	{%rd5, %rd6}, [%rd4];
	st.global.u8 	[%rd6+3], %rs1;
	cp.async.cg.shared.global 	[%r1], [%rd3], 16;
	red.global.add.f32 	[%rd4], %f1;
	atom.shared.add.u32 	%r2, [%r3], 1;
	st.local.u32 	[%rd7], %r2;
	ret;

}
"""


def compiled(text: str, tensors: dict[str, int], used: Resources = CLEAN, branches: bool = False) -> Compiled:
    (kernel,) = kernels(text)
    return Compiled(kernel.name, "", 90, kernel, used, Expected(tensors, branches=branches))


def accesses(kernel: Kernel) -> list[tuple[str, int, bool, str]]:
    return [(access.kind, access.bits, access.guarded, ",".join(sorted(access.roots))) for access in kernel.accesses]


def test_accesses_and_where_their_addresses_come_from() -> None:
    (kernel,) = kernels(TRITON)
    want = [("load", 128, False, "0"), ("store", 128, False, "1"), ("load", 32, True, "0"), ("store", 32, True, "1")]
    assert accesses(kernel) == want and kernel.atomics == kernel.local == 0


def test_structs_tables_atomics_and_local_memory() -> None:
    (kernel,) = kernels(NVCC)
    assert accesses(kernel) == [
        ("load", 128, False, "0"),
        ("store", 64, False, "0+16"),
        ("load", 128, False, "0+16"),
        ("store", 8, False, "*0+16"),
        ("load", 128, False, "0"),
    ]
    assert kernel.atomics == 1 and kernel.local == 1


def test_ptxas_report_of_several_entries() -> None:
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers
"""
    assert resources(log) == {"a": Resources(255, 32, 16, 1024), "b": Resources(20, 0, 0, 0)}


def test_a_clean_kernel_has_no_problem() -> None:
    kernel = compiled(TRITON, {"0": 4, "1": 4})
    assert kernel.problems() == [] and kernel.bytes_per_element == 8
    assert static_report.cells(kernel)[3:] == ("40", "0", "0", "128", "128", "8", "8", "")


@pytest.mark.parametrize(("old", "new", "message"), [
    ("ld.global.v4.b32 { %r2, %r3, %r4, %r5 }", "ld.global.v2.b32 { %r2, %r3 }", "loads of 64 bits; accepted: 128 and more"),
    ("st.global.v4.b32 [ %rd5 + 0 ], { %r2, %r3, %r4, %r5 }", "st.global.b32 [ %rd5 + 0 ], { %r2 }", "stores of 32 bits"),
    ("@%p1 bra", "ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd6 + 64 ];\n\t@%p1 bra", "12 bytes per element; accepted: 8"),
    ("@%p1 bra", "red.global.add.f32 [ %rd5 ], %f1;\n\t@%p1 bra", "1 atomic instructions"),
])  # fmt: skip
def test_what_breaks_a_promise_is_told(old: str, new: str, message: str) -> None:
    assert old in TRITON
    assert message in "; ".join(compiled(TRITON.replace(old, new), {"0": 4, "1": 4}).problems())


def test_spills_are_told() -> None:
    (told,) = compiled(TRITON, {"0": 4, "1": 4}, Resources(255, 32, 16, 0)).problems()
    assert told == "32 bytes spilled, 16 bytes of stack, 0 local accesses; accepted: none"


def test_codes_are_stored_as_many_at_a_time_as_are_loaded() -> None:
    bytes_of_codes = TRITON.replace("st.global.v4.b32 [ %rd5 + 0 ], { %r2, %r3, %r4, %r5 }", "st.global.b32 [ %rd5 + 0 ], { %r2 }")
    kernel = compiled(bytes_of_codes, {"0": 4, "1": 1})
    assert kernel.problems() == [] and kernel.bytes_per_element == 5


def test_edges_in_branches_count_by_the_widest_access() -> None:
    unguarded = TRITON.replace("@%p2 ", "")
    assert compiled(unguarded, {"0": 4, "1": 4}, branches=True).problems() == []
    assert "loads of 32 bits" in compiled(unguarded, {"0": 4, "1": 4}).problems()[0]


def test_names_of_cuda_kernels_tell_their_types() -> None:
    backward = static_cuda.expected("fake_quant_kernel<BackwardRows<__nv_bfloat16, true, false, true> >")
    assert backward.tensors == {"0": 2, "0+8": 2, "0+16": 2} and backward.load_bits == 16
    many = static_cuda.expected("fake_quant_all_kernel<Rows<Forward<float, true, true> > >")
    assert many.tensors == {"0+784": 4, "0+800": 4} and many.load_bits == 128
    assert not static_cuda.expected("fake_quant_kernel<Rows<Codes<float, true, true> > >").written
    assert static_cuda.expected("fake_quant_kernel<FinishSums>").tensors == {}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The report in a process of its own: this one may have Triton's interpreter in the compiler's place."""
    full = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "fastqat._bench.static_report", *arguments]
    return subprocess.run(command, cwd=ROOT, env=full, capture_output=True, text=True, timeout=600)


def test_says_what_is_missing() -> None:
    done = run("--only", "triton", TRITON_INTERPRET="1")
    assert done.returncode == 0 and "triton: not reported: " in done.stdout


KERNELS = """
import dataclasses, sys
import triton, triton.language as tl
from fastqat._bench.static_triton import Variant, compiled


@triton.jit
def scale_kernel(x_ptr, scale_ptr, y_ptr, n, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    scale = tl.load(scale_ptr)
    if start + BLOCK <= n:
        tl.store(y_ptr + offsets, tl.load(x_ptr + offsets) * scale)
    else:
        tl.store(y_ptr + offsets, tl.load(x_ptr + offsets, mask=offsets < n) * scale, mask=offsets < n)


types = {"x_ptr": "*fp32", "scale_ptr": "*fp32", "y_ptr": "*fp32", "n": "i64", "BLOCK": "constexpr"}
wide = Variant(scale_kernel, "wide", types, {"BLOCK": 2048}, frozenset({"x_ptr", "y_ptr"}), {}, {"x_ptr": 4, "y_ptr": 4})
for arch in (80, 90, 100):
    print(compiled(wide, arch).problems())
print(compiled(dataclasses.replace(wide, aligned=frozenset({"y_ptr"})), 90).problems())
print(compiled(dataclasses.replace(wide, constants={"BLOCK": 256}), 90).problems())
"""


def test_a_triton_kernel_is_compiled_and_judged(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "kernels.py").write_text(KERNELS)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, tmp_path / "kernels.py"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == [
        *["[]"] * 3,
        "['loads of 32 bits; accepted: 128 and more']",
        "['loads of 64 bits; accepted: 128 and more', 'stores of 64 bits; accepted: 128 and more']",
    ], done.stderr


@pytest.mark.parametrize("arguments", [
    ["--only", "triton", "--archs", "90"],
    ["--only", "triton", "--archs", "80", "100", "--filter", "channel 1, bfloat16"],
    ["--only", "cuda", "--archs", "90"],
], ids=" ".join)  # fmt: skip
def test_no_kernel_of_the_package_has_a_problem(arguments: list[str]) -> None:
    done = run(*arguments, "--bad")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not reported" in done.stdout or re.search(r"[1-9]\d* kernels compiled for sm [\d, ]+: none with a problem", done.stdout)
