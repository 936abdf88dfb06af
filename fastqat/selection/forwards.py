"""What a scoring pass needs of a model: evaluation mode, its device, a batch moved there, and logits out of whatever it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastqat._errors import InputError
from fastqat._modes import device_of, evaluation_mode

__all__ = ["Forward", "Keywords", "device_of", "evaluation_mode", "logits_of", "output_of", "to_device", "unwrapped"]

Forward = Callable[[nn.Module, Any], Any]


class Keywords(dict):
    """A batch that came as a mapping: the model gets it as keyword arguments, as the models of Hugging Face want it."""


def output_of(model: nn.Module, x: Any, forward: Forward | None = None) -> Any:
    """``forward(model, x)``; without a `forward` ``model(x)``, or ``model(**x)`` for `Keywords`."""
    if forward is not None:
        return forward(model, x)
    return model(**x) if isinstance(x, Keywords) else model(x)


def logits_of(model: nn.Module, x: Any, forward: Forward | None = None) -> Tensor:
    """Logits ``[B, C]`` of one batch: the model's output, its ``.logits``, or the first of the tuple it returns.

    Raises:
        InputError: that is not a tensor ``[B, C]``.
    """
    output = output_of(model, x, forward)
    logits = getattr(output, "logits", output)
    if isinstance(logits, (tuple, list)):
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{type(model).__name__} must return logits [batch, classes]; got {got}; pass forward=lambda model, x: ...")
    return logits


def to_device(x: Any, device: torch.device, *, for_backward: bool = False) -> Any:
    """`x` with every tensor in it on `device`, inside of lists, tuples and mappings, and of what has a ``.to`` of its own.

    From pinned memory the host does not wait for the copy. What was made in inference mode is copied when it is `for_backward`: it could
    not be saved for a backward pass.
    """
    if isinstance(x, Tensor):
        x = x.to(device, non_blocking=True)
        return x.clone() if for_backward and x.is_inference() else x
    if hasattr(x, "to"):
        return x.to(device)
    if isinstance(x, Mapping):
        kind = Keywords if isinstance(x, Keywords) else dict
        return kind({key: to_device(value, device, for_backward=for_backward) for key, value in x.items()})
    if isinstance(x, (list, tuple)):
        moved = [to_device(value, device, for_backward=for_backward) for value in x]
        return type(x)(*moved) if hasattr(x, "_fields") else type(x)(moved)
    return x


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of `DistributedDataParallel`, whose own forward exchanges buffers and so needs as many batches in every process."""
    return model.module if isinstance(model, DistributedDataParallel) else model
