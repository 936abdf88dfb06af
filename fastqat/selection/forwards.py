"""Running a model for its outputs only: evaluation mode that is put back, and logits out of whatever the model returns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastqat._errors import InputError

Forward = Callable[[nn.Module, Any], Any]


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Run the block in eval mode and without gradients; afterwards, errors included, every module is in the mode it was in.

    Gradients are off by `torch.no_grad`, not inference mode: what a module caches in here stays usable in training.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU for a model without any."""
    return next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))


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
