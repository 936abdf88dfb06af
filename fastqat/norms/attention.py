"""`torch.nn.MultiheadAttention`: its own forward calls no modules, so for the duration it gets one whose projections are watched."""

from __future__ import annotations

import math
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._errors import InputError
from .calls import Call
from .rules import find_rule
from .targets import Target

if TYPE_CHECKING:
    from .engine import Pass


def switch_nested_off(measured: Pass) -> None:
    """An encoder in eval mode may turn padded sequences into nested tensors. Its layers' own fused path is off where they have hooks."""
    for module in measured.model.modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            module.use_nested_tensor = False
            measured.at_exit(partial(setattr, module, "use_nested_tensor", True))


def replace_forward(measured: Pass, target: Target) -> None:
    """Give the module the watched forward until the block ends."""
    before = vars(target.module).get("forward")
    target.module.forward = _Watched(measured, target)
    measured.at_exit(partial(vars(target.module).pop, "forward") if before is None else partial(setattr, target.module, "forward", before))


class _Watched:
    """The watched forward of one module; a copy of the module gets its own plain one."""

    def __init__(self, measured: Pass, target: Target):
        self._pass, self._target = measured, target

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return _forward(self._pass, self._target, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        module = self._target.module
        return MethodType(type(module).forward, memo.get(id(module), module))


def after(measured: Pass, call: Call, y: Any) -> None:
    """Nothing is left to do: its projections are watched."""


def _forward(
    measured: Pass,
    target: Target,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `nn.MultiheadAttention.forward` computes; its arguments and results."""
    layer: Any = target.module
    if measured.muted or not torch.is_grad_enabled():
        masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
        return type(layer).forward(layer, query, key, value, need_weights=need_weights, average_attn_weights=average_attn_weights, **masks)
    query, key, value = _batch_first(measured, target, query, key, value)
    projections = _Projections(measured, target)
    q, k, v = (x.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for x in projections.inputs(query, key, value))
    if layer.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if causal else _mask(q, k, attn_mask, key_padding_mask)
    dropout, weights = layer.dropout if layer.training else 0.0, None
    if need_weights:
        scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(2, 3)
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        y = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    y = projections.output(y.transpose(1, 2).flatten(2))
    return (y if layer.batch_first else y.transpose(0, 1)), weights


def _batch_first(measured: Pass, target: Target, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value with the samples in dimension 0; the same tensor stays the same."""
    layer: Any = target.module
    dim = 0 if layer.batch_first else 1
    for tensor in tensors:
        if tensor.dim() != 3 or tensor.is_nested:
            raise InputError(f"{target.label} was given {list(tensor.shape)}; accepted: a batch of sequences, three dimensions")
        measured.check_batch(tensor, target, "input", dim)
    turned = {id(x): x.transpose(0, dim) for x in tensors}
    return tuple(turned[id(x)] for x in tensors)


def _mask(q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """Both masks as one that is added to the scores ``[N, heads, L, S]``; nothing is masked of keys that the layer itself adds."""
    masks = []
    if attn_mask is not None:
        masks.append(
            attn_mask if attn_mask.dim() == 2 else attn_mask.view(-1, 1 if attn_mask.shape[0] == 1 else q.shape[1], *attn_mask.shape[1:])
        )
    if padding is not None:
        masks.append(padding[:, None, None, :])
    total = None
    for mask in masks:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -math.inf)
        mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))
        total = mask if total is None else total + mask
    return total


class _Projections:
    """The linear maps of one call, watched."""

    def __init__(self, measured: Pass, target: Target):
        self._pass, self._target = measured, target
        self._layer: Any = target.module

    def inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """The three projections, ``[N, L, E]`` and ``[N, S, E]`` twice, with what `add_bias_kv` adds."""
        layer, width = self._layer, self._layer.embed_dim
        if layer.in_proj_weight is not None and query is key and key is value:
            q, k, v = self._linear(query, "in_proj_weight", "in_proj_bias").chunk(3, -1)
        else:
            packed = layer.in_proj_weight is not None
            q, k, v = (
                self._linear(x, "in_proj_weight" if packed else f"{letter}_proj_weight", "in_proj_bias", rows if packed else None, rows)
                for x, letter, rows in zip((query, key, value), "qkv", (slice(i * width, (i + 1) * width) for i in range(3)), strict=True)
            )
        if layer.bias_k is not None:
            k, v = (torch.cat([x, self._token(name)], 1) for x, name in ((k, "bias_k"), (v, "bias_v")))
        return q, k, v

    def output(self, x: Tensor) -> Tensor:
        """The projection of the heads' results ``[N, L, E]``."""
        return self._linear(x, "out_proj.weight", "out_proj.bias")

    def _linear(self, x: Tensor, weight: str, bias: str, weight_rows: slice | None = None, bias_rows: slice | None = None) -> Tensor:
        """x through the rows of the parameters that are named."""
        values: list[Tensor] = []
        parameters: dict[str, Tensor] = {}
        for own, name, rows in (("weight", weight, weight_rows), ("bias", bias, bias_rows)):
            parent, _, attribute = name.rpartition(".")
            value = getattr(self._layer.get_submodule(parent), attribute)
            values.append(value if rows is None or value is None else value[rows])
            if name in self._target.names:
                parameters[own] = self._target.parameters[name]
        y = F.linear(x, *values)
        measure = partial(self._measure, parameters, {"weight": weight_rows, "bias": bias_rows})
        return self._pass.taps.watch(y, (x,), measure, self._target.label) if parameters else y

    def _measure(self, parameters: dict[str, Tensor], rows: dict[str, slice | None], inputs: tuple[Tensor, ...], grad_y: Tensor) -> None:
        layer, rule = self._layer.out_proj, find_rule(self._layer.out_proj)
        assert rule is not None
        self._pass.arrived(grad_y)
        self._pass.collector.add_layer(self._target.name, rule, layer, inputs[0].to(grad_y.dtype), grad_y, parameters, rows)

    def _token(self, name: str) -> Tensor:
        """The key or value ``[N, 1, E]`` that every sample gets."""
        parameter = getattr(self._layer, name)
        rows = parameter[0].expand(self._pass.samples, -1, -1)
        if name not in self._target.names:
            return rows
        deliver = partial(self._add_token, parameter)
        return self._pass.taps.watch(rows, (), deliver, self._target.label)

    def _add_token(self, parameter: Tensor, inputs: tuple[Tensor, ...], grads: Tensor) -> None:
        self._pass.arrived(grads)
        self._pass.collector.add_grads(parameter, grads.unsqueeze(1))
