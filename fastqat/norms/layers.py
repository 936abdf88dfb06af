"""Layers that have a rule, and quantized layers, which measure themselves in their own backward."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .._errors import InputError
from ..nn.layer import QuantLayer
from ..ops.quant_layer.norms import SampleNorms
from .calls import Call, in_backward
from .rules import Rule
from .rules.registry import rule_of
from .spread import Spread
from .targets import Target

if TYPE_CHECKING:
    from .engine import Pass

_POSITIONWISE = (nn.Embedding, nn.Linear, nn.LayerNorm, nn.RMSNorm)  # all dimensions before the last are free


def after_rule(measured: Pass, call: Call, y: Any) -> Tensor | None:
    """Watch the output of a layer that has a rule."""
    target = call.target
    x, y = call.single(y)
    if isinstance(y, Spread):  # made of parameters alone: the layer's were followed inside of it
        return None
    assert target.rule is not None
    if measured.samples is not None and isinstance(target.module, _POSITIONWISE) and _is_same(measured, target, x):
        return measured.reads.spread_output(call, x, y)
    _check_batched(target, target.rule, x)
    measured.check_batch(x, target, "input", target.dim)
    measured.check_batch(y, target, "output", target.dim)
    return measured.taps.watch(y, (x,), partial(_apply_rule, measured, target), target.label)


def _is_same(measured: Pass, target: Target, x: Tensor) -> bool:
    """Whether x is the same for all samples; told in the forward pass, as a checkpoint that repeats it does not show where x comes from."""
    told = measured.reads.same.setdefault(target.module, set())
    if not in_backward() or not told:
        ids_of_all = isinstance(target.module, nn.Embedding) and x.shape[:1] != (measured.samples,)
        same = ids_of_all or x in measured.reads.constants
        told.add(same)
        return same
    if len(told) > 1:
        raise InputError(
            f"{target.label} is called with samples and with what is the same for all of them, in a checkpoint, where it cannot be told "
            "which; take one of the calls out of the checkpoint"
        )
    return told == {True}


def _check_batched(target: Target, rule: Rule | None, x: Tensor) -> None:
    if rule is not None and not rule.is_batched(target.module, x):
        raise InputError(f"{target.label} was given {list(x.shape)}, a sample that is in no batch; accepted: a batch. Pass x[None]")


def _apply_rule(measured: Pass, target: Target, inputs: tuple[Tensor, ...], grad_y: Tensor) -> None:
    assert target.rule is not None
    x = inputs[0]
    if target.dim:
        x, grad_y = x.transpose(0, target.dim), grad_y.transpose(0, target.dim)
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
    x, y = call.single(y)
    float_layer = next(base for base in type(call.target.module).__mro__ if rule_of(base) is not None)
    _check_batched(call.target, rule_of(float_layer), x)
    if isinstance(call.target.module, nn.Linear) and _is_same(measured, call.target, x):
        raise InputError(
            f"{call.target.label} is given {list(x.shape)}, the same for all samples, for which a quantized layer cannot be measured; "
            "expand what it makes of one to the batch in a float layer, or freeze this one beside parameters that train"
        )
    for tensor, what in ((x, "input"), (y, "output")):
        measured.check_batch(tensor, call.target, what)
