"""Where a process computes."""

from __future__ import annotations

import os

import torch

from fastqat._distributed import world
from fastqat._errors import InputError


def pick_device(name: str) -> torch.device:
    """``auto`` is cuda where torch has it, else the CPU; with several processes each has the GPU of its LOCAL_RANK.

    Raises:
        InputError: a device that is not there, or one GPU named for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if world().size > 1 and name.startswith("cuda"):
        return _own_gpu(name)
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); use auto or cpu") from error


def _own_gpu(name: str) -> torch.device:
    here, gpus = world(), torch.cuda.device_count()
    if name != "cuda":
        raise InputError(f"device {name!r} is one GPU for {here.size} processes; use auto or cuda: each process takes one of its own")
    local = int(os.environ.get("LOCAL_RANK", here.rank))
    if local >= gpus:
        raise InputError(f"process {here.rank} has no GPU of its own: this machine has {gpus}; start as many processes, or use cpu")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
