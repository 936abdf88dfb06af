"""Functions of torch that do what a layer with a rule does, called with parameters by modules of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rules import Rule
from .rules.registry import rule_of
from .spread import Spread

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0, "padding_mode": "zeros"}
_TABLE = {"padding_idx": None, "scale_grad_by_freq": False}


class Signature(NamedTuple):
    """The type of layer that a function is the forward of, and the names of the function's arguments and their defaults."""

    layer: type[nn.Module]
    arguments: tuple[str, ...]
    defaults: Mapping[str, Any]


_SIGNATURES: dict[Callable[..., Any], Signature] = {
    F.linear: Signature(nn.Linear, ("input", "weight", "bias"), {}),
    F.conv1d: Signature(nn.Conv1d, _CONV, _DEFAULTS),
    F.conv2d: Signature(nn.Conv2d, _CONV, _DEFAULTS),
    F.conv3d: Signature(nn.Conv3d, _CONV, _DEFAULTS),
    F.conv_transpose1d: Signature(nn.ConvTranspose1d, _TRANSPOSED, _DEFAULTS),
    F.conv_transpose2d: Signature(nn.ConvTranspose2d, _TRANSPOSED, _DEFAULTS),
    F.conv_transpose3d: Signature(nn.ConvTranspose3d, _TRANSPOSED, _DEFAULTS),
    F.layer_norm: Signature(nn.LayerNorm, ("input", "normalized_shape", "weight", "bias", "eps"), {"eps": 1e-5}),
    F.rms_norm: Signature(nn.RMSNorm, ("input", "normalized_shape", "weight", "eps"), {"eps": None}),
    F.group_norm: Signature(nn.GroupNorm, ("input", "num_groups", "weight", "bias", "eps"), {"eps": 1e-5}),
    F.batch_norm: Signature(nn.BatchNorm2d, _NORM, {"training": False, "eps": 1e-5}),
    F.instance_norm: Signature(nn.InstanceNorm2d, _NORM, {"running_mean": None, "running_var": None, "training": True, "eps": 1e-5}),
    F.prelu: Signature(nn.PReLU, ("input", "weight"), {}),
    F.embedding: Signature(nn.Embedding, ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"), _TABLE),
}


class Applied(NamedTuple):
    """A call that a rule can measure; `layer` has what the rule reads, `parameters` the tensors by the rule's names."""

    rule: Rule
    layer: Any
    x: Tensor | None
    parameters: dict[str, Tensor]


def recognise(func: Any, args: Any, kwargs: Any, samples: int) -> Applied | None:
    """The layer that this call is, if it is one on a batch."""
    signature = _SIGNATURES.get(func)
    rule = None if signature is None else rule_of(signature.layer)
    if signature is None or rule is None:
        return None
    values = {**signature.defaults, **dict(zip(signature.arguments, args, strict=False)), **kwargs}
    x, parameters = values.pop("input"), {name: values[name] for name in ("weight", "bias") if values.get(name) is not None}
    if not isinstance(x, Tensor) or isinstance(x, Spread) or x.dim() == 0 or x.shape[0] != samples or "weight" not in parameters:
        return None
    layer = _layer(signature.layer, values, parameters["weight"])
    return Applied(rule, layer, x, parameters) if _is_batched(signature.layer, x, layer) and rule.refuses(layer) is None else None


def mixes_samples(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether it normalises by statistics over the batch."""
    if func is not F.batch_norm and func is not torch.batch_norm:
        return False
    return bool(kwargs["training"] if "training" in kwargs else len(args) > 5 and args[5])


def _layer(kind: type[nn.Module], values: dict[str, Any], weight: Tensor) -> Any:
    """What the rule of `kind` reads."""
    if "use_input_stats" in values:  # what F.instance_norm calls it
        values["training"] = values.pop("use_input_stats")
    if kind is nn.Embedding and values["padding_idx"] is not None:
        values["padding_idx"] %= weight.shape[0]
    kernel_size = tuple(weight.shape[2:])
    if "output_padding" in values:
        values.update({name: _each_dim(values[name], len(kernel_size)) for name in ("stride", "output_padding")})
    return SimpleNamespace(**values, kernel_size=kernel_size, num_parameters=weight.numel())


def _each_dim(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _is_batched(kind: type[nn.Module], x: Tensor, layer: Any) -> bool:
    """Whether x has a dimension for the samples beside those that the function is made for."""
    if kind is nn.Embedding:
        return True
    return x.dim() == layer.weight.dim() if layer.kernel_size else x.dim() > 1
