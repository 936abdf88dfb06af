"""What is installed and what of it can be used: ``fastqat info``."""

from __future__ import annotations

import importlib
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fastqat
from fastqat._backend import NATIVE_REASON, backends
from fastqat._errors import InputError

# package → what it is for here
OPTIONAL = {
    "torchvision": "models by name, imagefolder",
    "scikit-learn": "the digits data set",
    "matplotlib": "figures of the report",
    "triton": "GPU kernels",
    "pytest-benchmark": "pytest bench",
}


def info_text() -> str:
    """Versions, build facts, CPU level, backends and optional packages, as lines of text."""
    lines = [
        f"fastqat    {fastqat.__version__} in {Path(fastqat.__file__).parent}",
        f"python     {platform.python_version()} on {platform.platform()}",
        f"torch      {torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads",
        f"CPU        {torch.backends.cpu.get_cpu_capability()} as torch sees it",
        f"GPU        {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none visible'}",
        "",
        *_build_lines(),
        "",
        repr(backends()),
        "",
        *(f"{name:<18}{_version(name) or 'not installed':<15}{use}" for name, use in OPTIONAL.items()),
    ]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _build_lines() -> list[str]:
    if NATIVE_REASON is not None:
        return [f"native part: no: {NATIVE_REASON}"]
    native: Any = importlib.import_module("fastqat._C")
    facts = native.build_info() if hasattr(native, "build_info") else {}
    return ["native part: loaded", *(f"  {key}: {value}" for key, value in facts.items()), f"  active cpu level: {_active_level()}"]


def _active_level() -> str:
    try:
        return active_cpu_level()
    except InputError as error:
        return f"none: {error}"


def cpu_model() -> str:
    """The processor's name; Linux tells it in /proc/cpuinfo, other systems through `platform`."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model", "Hardware"):
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def active_cpu_level() -> str:
    """The instruction set that the loaded CPU kernels run with, such as ``"avx2"``.

    Raises:
        InputError: ``FASTQAT_CPU_LEVEL`` names one that was not built or that this CPU has not.
    """
    native: Any = importlib.import_module("fastqat._C")
    try:
        return native.cpu_level()
    except RuntimeError as error:
        line = str(error).splitlines()[0]  # "function, file.cpp:line, reason"
        reason = line.rpartition(".cpp:")[2].partition(", ")[2]
        raise InputError(f"FASTQAT_CPU_LEVEL: {reason or line}") from error
