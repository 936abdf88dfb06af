"""What a scoring pass needs of a model: evaluation mode, its device, and logits out of whatever it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat._modes import device_of, evaluation_mode

__all__ = ["Forward", "device_of", "evaluation_mode", "logits_of"]

Forward = Callable[[nn.Module, Any], Any]


def logits_of(model: nn.Module, x: Any, forward: Forward | None = None) -> Tensor:
    """Logits ``[B, C]`` of one batch: the model's output, its ``.logits``, or the first of the tuple it returns.

    Raises:
        InputError: that is not a tensor ``[B, C]``.
    """
    output = model(x) if forward is None else forward(model, x)
    logits = getattr(output, "logits", output)
    if isinstance(logits, (tuple, list)):
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{type(model).__name__} must return logits [batch, classes]; got {got}; pass forward=lambda model, x: ...")
    return logits
