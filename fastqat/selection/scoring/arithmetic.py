"""What torch computes in on a device, which the same model and data do not tell."""

from __future__ import annotations

import torch


def autocast_dtype(device: torch.device) -> str:
    """The dtype of `torch.autocast` where that is on, else \"\"."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return ""
    return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")


def arithmetic(device: torch.device) -> str:
    """The kind of device, its autocast, and how a GPU multiplies fp32: what the bits of a forward depend on beside model and data."""
    parts = [device.type, autocast_dtype(device)]
    if device.type == "cuda":
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # made when torch is imported
        parts += [torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision]
    return " ".join(parts).strip()
