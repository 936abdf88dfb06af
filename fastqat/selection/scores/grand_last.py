"""GraNd of the last layer: the size of the loss gradient there, in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.nn.layer import QuantLayer
from fastqat.nn.weights import version
from fastqat.ops.grand_last.api import grand_last as gradient_norm
from fastqat.selection.scores.registry import Watched, register_score


@register_score(
    "grand_last",
    formula="‖p − y‖₂ · √(1 + ‖h‖²)",
    direction="largest",
    needs=("targets", "features"),
    source="GraNd, Paul et al., NeurIPS 2021 (arXiv 2107.07075), for the last layer",
)
@contextmanager
def grand_last(model: nn.Module) -> Iterator[Watched]:
    """Norm of the cross-entropy's gradient in the weight and bias of the last linear layer, h its input. ``[N]`` fp32.

    The layer is the `torch.nn.Linear`, or quantized linear layer, whose output the logits are; they may be converted to another dtype.
    Of a quantized layer h is x_hat, its input as the layer multiplies it, and the gradient is that of the quantized weight: what the
    straight-through estimator blocks for clipped weights counts here, as it does not in ``grand``.

    Raises:
        InputError: the logits are not the output of such a layer.
    """
    calls: list[_Call] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(layer, nn.Linear) and isinstance(output, Tensor) and output.dim() == 2:  # logits are; keep nothing larger
            calls.append(_Call(layer, inputs[0].detach(), output.detach(), version(output)))

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, nn.Linear)]
    try:
        watched = Watched()
        yield watched
        watched.scores = _score(model, calls, watched)
    finally:
        for hook in hooks:
            hook.remove()


class _Call(NamedTuple):
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


def _score(model: nn.Module, calls: list[_Call], watched: Watched) -> Tensor:
    """The scores of a batch, from what the linear layers were called with."""
    found = next((call for call in reversed(calls) if call.gave(watched.logits)), None)
    if found is None:
        raise InputError(
            f"grand_last needs logits that are the output of an nn.Linear; {type(model).__name__} computes them otherwise, or changes "
            "them afterwards; ask for grand, which takes all layers"
        )
    with torch.no_grad():
        return gradient_norm(watched.logits, watched.targets, _as_multiplied(found.layer, found.x), bias=found.layer.bias is not None)


def _as_multiplied(layer: nn.Linear, x: Tensor) -> Tensor:
    """The input of `layer` as it enters the product."""
    quantizer = layer.activation_quantizer if isinstance(layer, QuantLayer) else None
    return x if quantizer is None else quantizer(x)
