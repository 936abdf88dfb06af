"""Weights quantized outside of their layers, for `share_weight_quant`: many in one call."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import FrameType

import torch
from torch import Tensor

from ..ops._autograd import transforming
from ..ops.fake_quant_all.api import fake_quantize_all
from ..ops.quant_layer.api import QuantArgs
from ..quantizers import Quantizer


def quantize_weights(quantizers: Sequence[Quantizer], weights: Sequence[Tensor]) -> list[Tensor]:
    """w_hat of every weight, by one call of `fake_quantize_all` per device."""
    places: dict[torch.device, list[int]] = {}
    for i, weight in enumerate(weights):
        places.setdefault(weight.device, []).append(i)
    w_hats = list(weights)
    for chosen in places.values():
        for i, w_hat in zip(chosen, _one_call([quantizers[i] for i in chosen], [weights[i] for i in chosen]), strict=True):
            w_hats[i] = w_hat
    return w_hats


def _one_call(quantizers: Sequence[Quantizer], weights: Sequence[Tensor]) -> list[Tensor]:
    operands = [quantizer.operand(weight) for quantizer, weight in zip(quantizers, weights, strict=True)]
    args = [a for _, a in operands if a is not None]  # all of them: no batches are observed for a weight
    xs = [x for x, _ in operands]
    return fake_quantize_all(
        xs,
        [a.scale for a in args],
        [a.zero_point for a in args],
        qmin=[a.qmin for a in args],
        qmax=[a.qmax for a in args],
        axis=[a.axis for a in args],
        group_size=[a.group_size for a in args],
        semantics=[a.semantics for a in args],
        grad_factors=[_grad_factor(a, x) for a, x in zip(args, xs, strict=True)],
    )


def _grad_factor(args: QuantArgs, x: Tensor) -> float:
    return args.grad_factor / math.sqrt(max(x.numel() // args.scale.numel(), 1)) if args.per_scale else args.grad_factor


def quantize_alone(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """w_hat of one weight, hidden from the saved-tensor hooks that are active.

    A checkpoint (torch.utils.checkpoint) runs its part again in the backward pass and compares what it saves with the first time, when
    w_hat came from outside. What is hidden are the weight and its scale, which the model keeps anyway. torch.func's transforms know no such
    hooks, and so no checkpoints either.
    """
    if torch.compiler.is_compiling() or transforming():
        return quantize_weights([quantizer], [weight])[0]
    with torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
        return quantize_weights([quantizer], [weight])[0]


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def version(weight: Tensor) -> int:
    """Changes when the weight is changed in place; a tensor of inference mode does not count."""
    return 0 if weight.is_inference() else weight._version


def is_running(frame: FrameType) -> bool:
    """Whether the call that has `frame` is among the callers of this function."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None
