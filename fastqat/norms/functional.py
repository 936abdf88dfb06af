"""Functions of torch that do what a layer with a rule does, called with parameters by modules of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .rules import Rule
from .rules.registry import rule_of

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_idx": None, "padding_mode": "zeros"}


class Signature(NamedTuple):
    """The type of layer that a function is the forward of, and the names of the function's arguments."""

    layer: type[nn.Module]
    arguments: tuple[str, ...]


_SIGNATURES: dict[Callable[..., Any], Signature] = {
    F.linear: Signature(nn.Linear, ("input", "weight", "bias")),
    F.conv1d: Signature(nn.Conv1d, _CONV),
    F.conv2d: Signature(nn.Conv2d, _CONV),
    F.conv3d: Signature(nn.Conv3d, _CONV),
    F.layer_norm: Signature(nn.LayerNorm, ("input", "normalized_shape", "weight", "bias", "eps")),
    F.rms_norm: Signature(nn.RMSNorm, ("input", "normalized_shape", "weight", "eps")),
    F.group_norm: Signature(nn.GroupNorm, ("input", "num_groups", "weight", "bias", "eps")),
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
    values = {**_DEFAULTS, "eps": None if func is F.rms_norm else 1e-5, **dict(zip(signature.arguments, args, strict=False)), **kwargs}
    x, parameters = values.pop("input"), {name: values[name] for name in ("weight", "bias") if values.get(name) is not None}
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[0] != samples or "weight" not in parameters:
        return None
    layer = SimpleNamespace(**values, kernel_size=tuple(parameters["weight"].shape[2:]))
    return Applied(rule, layer, x, parameters)
