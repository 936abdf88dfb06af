"""What is installed: names, versions, and that fastqat imports without its native part, without triton and without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest
import torch

import fastqat as fq
from fastqat import _backend


def python(code: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_is_the_installed_one() -> None:
    try:
        installed = metadata.version("fastqat")
    except metadata.PackageNotFoundError:
        pytest.skip("runs from a source tree that is not installed")
    assert fq.__version__ == installed


def test_every_public_name_exists_and_is_documented() -> None:
    for name in fq.__all__:
        assert (getattr(fq, name).__doc__ or "").strip(), f"fq.{name} has no docstring"


def test_imports_and_works_without_the_native_part() -> None:
    code = """
import torch, fastqat as fq
print(fq.fake_quantize(torch.tensor([0.3]), torch.tensor(0.5), qmin=-8, qmax=7).item())
print(fq.backends())
"""
    out = python(code, FASTQAT_NO_NATIVE="1")
    assert out.startswith("0.5") and "switched off by FASTQAT_NO_NATIVE" in out


def test_says_that_the_native_part_is_not_built() -> None:
    hide = """
import importlib.util, importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("fastqat._C", "triton"): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in ("fastqat._C", "triton") else real(name, *a)
import fastqat as fq
table = fq.backends()
print(table["cpu"]["fake_quant"]); print(table["triton"]["fake_quant"])
"""
    out = python(hide)
    assert "fastqat._C is not built; reinstall fastqat" in out and "triton is not installed" in out


def test_import_compiles_nothing_and_starts_no_cuda() -> None:
    code = """
import sys, fastqat, torch
print(torch.cuda.is_initialized(), *(name in sys.modules for name in ("torch._dynamo", "triton", "fastqat._C_cuda")))
"""
    initialised, compiler, triton, cuda_object = python(code).split()
    assert initialised == compiler == triton == "False"
    assert torch.version.cuda is not None or cuda_object == "False"


def test_backend_by_name_never_falls_back() -> None:
    x, s = torch.ones(2), torch.tensor(0.5)
    table = fq.backends()
    assert table["reference"]["fake_quant"] is None
    for name in table:
        reason = table[name]["fake_quant"]
        if reason:
            with fq.use_backend(name), pytest.raises(RuntimeError, match=f"backend '{name}' was asked for"):
                fq.fake_quantize(x, s, qmin=-8, qmax=7)
    with pytest.raises(ValueError, match="choose one of"), fq.use_backend("gpu"):
        pass


def test_a_backend_without_the_kernel_says_so_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing on this machine does not matter then."""
    monkeypatch.setitem(_backend._implementations, "new_op", {"reference": object()})
    table = fq.backends()
    assert table["cuda"]["new_op"] == table["triton"]["new_op"] == "has no kernel for new_op"
    assert "has no kernel" not in str(table["cuda"]["fake_quant"])


def test_backend_from_the_environment() -> None:
    code = "import torch, fastqat as fq; from fastqat import _backend; print(_backend.pick('fake_quant', torch.ones(1)).__name__)"
    assert python(code, FASTQAT_BACKEND="reference").strip().endswith("reference")


@pytest.mark.skipif(_backend.NATIVE_REASON is not None, reason="fastqat._C is not built")
def test_build_facts_and_cpu_levels() -> None:
    from fastqat import _C

    facts = _C.build_info()
    assert {"compiler", "flags", "cpu_levels", "cuda_archs", "torch", "stable_abi"} <= set(facts)
    assert _C.cpu_level() in facts["cpu_levels"].split()
    with pytest.raises(RuntimeError, match="unknown CPU level"):
        _C.set_cpu_level("sse9")
    assert python("from fastqat import _C; print(_C.cpu_level())", FASTQAT_CPU_LEVEL="baseline").strip() == "baseline"
