"""Facts about machine and versions that every row carries."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata

import torch

from fastqat._info import cpu_model
from fastqat.train.outcome import source_commit


@dataclass(frozen=True)
class Machine:
    """Where and with what a run was made."""

    time: str
    commit: str
    fastqat: str
    torch: str
    triton: str
    python: str
    system: str
    cpu: str
    cpu_level: str
    threads: int


def this_machine() -> Machine:
    """The facts of this process, now."""
    return Machine(
        time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        commit=source_commit() or "",
        fastqat=_version("fastqat") or "source",
        torch=torch.__version__,
        triton=_version("triton"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_model(),
        cpu_level=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
    )


def device_name(kind: str) -> str:
    """What a case of `kind`, ``"cpu"`` or ``"cuda"``, runs on: ``"cpu"``, or the name of the GPU."""
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
