"""Layers that have a rule, and quantized layers, which measure themselves in their own backward."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._errors import InputError
from ..nn.layer import QuantLayer
from ..ops.quant_layer.norms import SampleNorms
from .calls import Call
from .targets import Target

if TYPE_CHECKING:
    from .engine import Pass


def after_rule(measured: Pass, call: Call, y: Any) -> Tensor:
    """Watch the output of a layer that has a rule."""
    target = call.target
    x, y = call.single(y)
    if isinstance(target.module, nn.Embedding):
        if measured.samples is not None and x.dim() and x.shape[0] != measured.samples:
            return measured.reads.spread_output(call, x, y)
        _check_ids(measured, target, x)
    measured.check_batch(x, target, "input")
    measured.check_batch(y, target, "output")
    return measured.taps.watch(y, (x,), partial(_apply_rule, measured, target), target.label)


def _check_ids(measured: Pass, target: Target, ids: Tensor) -> None:
    """One id for each sample must not be the positions of as many tokens."""
    if ids.dim() != 1 or ids.shape[0] < 2 or measured.is_input(ids):
        return
    if torch.equal(ids, torch.arange(ids.shape[0], dtype=ids.dtype, device=ids.device)):
        raise InputError(
            f"{target.label} was given 0 to {ids.shape[0] - 1}, which may be one id for each of the {ids.shape[0]} samples, or the "
            "positions of as many tokens; pass positions as [1, T], or another number of samples"
        )


def _apply_rule(measured: Pass, target: Target, inputs: tuple[Tensor, ...], grad_y: Tensor) -> None:
    assert target.rule is not None
    (x,) = inputs
    measured.arrived(grad_y)
    x = x.to(grad_y.dtype) if x.is_floating_point() else x  # as autocast did
    measured.collector.add_layer(target.name, target.rule, target.module, x, grad_y, target.parameters)


def watch_quantized(measured: Pass, target: Target) -> None:
    """Have the layer deliver from its backward, each time with its own quantized weight."""
    layer = target.module
    assert isinstance(layer, QuantLayer)
    delivered: list[None] = []

    def deliver(sq_norm: Tensor, scales: dict[str, Tensor]) -> None:
        if measured.muted:
            return
        if delivered:
            raise InputError(
                f"{target.label} was reached twice by the backward pass; a quantized layer must be called once in a pass. Give each call a "
                "layer of its own, or leave this one float; a second backward pass needs a new block"
            )
        delivered.append(None)
        measured.arrived(sq_norm)
        measured.collector.add_sq_norm(target.name, sq_norm)
        for name, grads in scales.items():
            parameter = target.parameters[name]
            measured.collector.add_grads(parameter, grads.reshape(-1, *parameter.shape))

    shares = layer.__dict__.pop("shares_weight_quant", None)
    layer.sample_norms = SampleNorms(target.names, measured.taps.anchor, deliver)
    measured.at_exit(partial(layer.__dict__.pop, "sample_norms"))
    if shares is not None:
        measured.at_exit(partial(setattr, layer, "shares_weight_quant", shares))


def after_quantized(measured: Pass, call: Call, y: Any) -> None:
    """Only check its shapes."""
    for tensor, what in zip(call.single(y), ("input", "output"), strict=True):
        measured.check_batch(tensor, call.target, what)
