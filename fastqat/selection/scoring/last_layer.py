"""The last linear layer of a model during one forward: what went into it, and whether the logits came out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.nn.layer import QuantLayer
from fastqat.nn.weights import version


class LinearCall(NamedTuple):
    """A linear layer with its input and output, and the version of the output's memory when the layer gave it."""

    layer: nn.Linear
    x: Tensor
    output: Tensor
    version: int

    def gave(self, logits: Tensor) -> bool:
        """Whether `logits` are the output: its memory, unchanged; or its values elsewhere or in another dtype: then a GPU is waited for."""
        if self.output.shape != logits.shape:
            return False
        if self.output.data_ptr() == logits.data_ptr():
            return version(self.output) == self.version
        return torch.allclose(self.output.to(logits.dtype), logits, rtol=0, atol=0, equal_nan=True)

    @property
    def multiplied(self) -> Tensor:
        """The input ``[B, D]`` as it enters the product, x_hat of a quantized layer; no gradients, whoever else watches the forward."""
        quantizer = self.layer.activation_quantizer if isinstance(self.layer, QuantLayer) else None
        with torch.no_grad():
            return self.x if quantizer is None else quantizer(self.x)


class LastLayer:
    """The calls of linear layers in one forward of `model`."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.calls: list[LinearCall] = []

    def note(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Forward hook: keep the call when its output may be logits, nothing larger."""
        if isinstance(layer, nn.Linear) and isinstance(output, Tensor) and output.dim() == 2:
            self.calls.append(LinearCall(layer, inputs[0].detach(), output.detach(), version(output)))

    def giving(self, logits: Tensor, *, asked: str, instead: str) -> LinearCall:
        """The call whose output `logits` are.

        Raises:
            InputError: there is none; the message says what `asked` for it and what to do `instead`.
        """
        found = next((call for call in reversed(self.calls) if call.gave(logits)), None)
        if found is None:
            raise InputError(
                f"{asked} needs logits that are the output of an nn.Linear; {type(self.model).__name__} computes them otherwise, or "
                f"changes them afterwards; {instead}"
            )
        return found


@contextmanager
def watch_last_layer(model: nn.Module) -> Iterator[LastLayer]:
    """Watch the linear layers of `model`, quantized ones included, during one forward; no hook stays behind."""
    seen = LastLayer(model)
    hooks = [layer.register_forward_hook(seen.note) for layer in model.modules() if isinstance(layer, nn.Linear)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
