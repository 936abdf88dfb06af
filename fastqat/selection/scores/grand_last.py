"""GraNd of the last layer: the size of the loss gradient there, in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastqat.ops.grand_last.api import grand_last as gradient_norm
from fastqat.selection.scores.registry import Watched, register_score
from fastqat.selection.scoring.last_layer import watch_last_layer


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
    watched = Watched()
    with watch_last_layer(model) as last:
        yield watched
        call = last.giving(watched.logits, asked="grand_last", instead="ask for grand, which takes all layers")
        with torch.no_grad():
            watched.scores = gradient_norm(watched.logits, watched.targets, call.multiplied, bias=call.layer.bias is not None)
