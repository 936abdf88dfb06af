"""Where Triton launches."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

_HERE = contextlib.nullcontext()


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device: make it that of the tensors, where it is another."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)
