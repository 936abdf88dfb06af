"""share_weight_quant(): all weights of a model quantized by one call per forward."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from .._errors import InputError
from ..quantizers import Quantizer
from .layer import QuantLayer
from .weights import quantize_weights, version

_HOOKS = "_weight_quant_hooks"
"""Attribute of a model that shares: the handles of its two hooks."""


def share_weight_quant(model: nn.Module, enabled: bool = True) -> nn.Module:
    """Quantize all weights of `model` by one call at the start of each forward, instead of one per layer.

    Worth it where launches cost more than the work: many small layers on a GPU, or a CPU with threads. One launch in the forward pass and
    one or two in the backward pass replace two and one per layer. Outputs and the gradients of weights keep their bits, those of scales and
    zero points too (a layer that is used twice adds up its gradients before they are reduced, not after).

    The price, and it is why this is not the default:

    * memory: every w_hat lives until its layer's backward has run, and the gradients of all w_hat until the last one is there: twice the
      size of the weights on top of what a step needs. The layers' own rule, to keep x and w only, holds for x alone.
    * the gradients of all weights arrive at the very end of the backward pass: DistributedDataParallel cannot send the first of them while
      the last are computed.
    * all weights are one node of the graph: separate backward passes through disjoint parts of one forward (auxiliary losses one by one,
      the two of a GAN) fail with "backward through the graph a second time". Add the losses up, pass ``retain_graph=True`` to all but the
      last, or do not share.

    Works in train and eval mode, without gradients, under autocast, ``torch.compile`` (fullgraph) and ``torch.utils.checkpoint`` of parts
    of the model. A part of the model called by itself quantizes its own weights. Layers whose weight is no plain parameter (computed by a
    hook or a parametrization, a DTensor) are left to themselves. The state_dict does not know of it; a copied or pickled model shares too.
    Not for what brings a layer's weight only when the layer runs, as FullyShardedDataParallel does.

    Args:
        model: a quantized model, changed in place; its own forward must be the one that is called (before it is wrapped in
            DistributedDataParallel or torch.compile).
        enabled: False: every layer quantizes its own weight again.

    Returns:
        `model`.

    Raises:
        InputError (a ValueError): no layer of the model quantizes its weight.

    Example:
        >>> import torch, fastqat as fq
        >>> net = fq.quantize(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), "w4a32", skip=())
        >>> x = torch.randn(3, 4)
        >>> torch.equal(fq.nn.share_weight_quant(net)(x), fq.nn.share_weight_quant(net, False)(x))
        True
    """
    layers = [module for module in model.modules() if isinstance(module, QuantLayer) and module.weight_quantizer is not None]
    if enabled and not layers:
        raise InputError("no layer of the model quantizes its weight; call fastqat.quantize(model, 'w4a4') first")
    for handle in [handle for module in model.modules() for handle in module.__dict__.pop(_HOOKS, ())]:
        handle.remove()
    for layer in layers:
        layer.shares_weight_quant = enabled
    if enabled:
        model.__dict__[_HOOKS] = (model.register_forward_pre_hook(_quantize), model.register_forward_hook(_drop, always_call=True))
    return model


def _sharing(model: nn.Module) -> list[tuple[QuantLayer, Quantizer]]:
    """The layers of `model` whose weight can be quantized before their own forward begins, with their quantizers."""
    return [
        (module, module.weight_quantizer)
        for module in model.modules()
        if isinstance(module, QuantLayer)
        and module.shares_weight_quant
        and module.weight_quantizer is not None
        and type(module._parameters.get("weight")) is nn.Parameter
    ]


def _quantize(model: nn.Module, inputs: Any) -> None:
    """Before the forward of `model`: give every layer its w_hat."""
    _drop(model, inputs, None)  # of a forward that was interrupted
    frame = None if torch.compiler.is_compiling() else sys._getframe(1)  # of torch's __call__, which runs the forward
    sharing = _sharing(model)
    w_hats = quantize_weights([quantizer for _, quantizer in sharing], [layer.weight for layer, _ in sharing])
    for (layer, _), w_hat in zip(sharing, w_hats, strict=True):
        layer.w_hat = w_hat
        layer.w_hat_origin = None if frame is None else (frame, version(layer.weight))


def _drop(model: nn.Module, inputs: Any, output: Any) -> None:
    """After it, whatever happened: only the graph still holds them."""
    for module in model.modules():
        if isinstance(module, QuantLayer) and module.w_hat is not None:
            module.w_hat = module.w_hat_origin = None
