"""param_groups(): optimizer groups that leave scales, norms and biases without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .._errors import InputError
from ..quantizers import Quantizer

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(
    model: nn.Module, lr: float, scale_lr: float | None = None, weight_decay: float = 0.0, *, activation_scale_lr: float | None = None
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: weights with decay; norms, biases and other vectors without; scales without and with their own rate.

    Every parameter is in exactly one group, one that several layers share too (a scale stays a scale). Empty groups are left out.
    Clipping values of ``"pact"`` are learned against an L2 penalty as strong as that of the weights (Choi et al., 2018): they
    have the weights' decay and the scales' rate.

    Args:
        model: any module, quantized or not.
        lr: learning rate.
        scale_lr: learning rate of the quantizers' parameters; None: `lr`.
        weight_decay: of the weights.
        activation_scale_lr: learning rate of the parameters of activations' quantizers, which are then in groups of their own; None: as
            those of weights.

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay`` and ``name`` (``"weights"``, ``"no_decay"``, ``"scales"``,
        ``"clips"``, ``"activation_scales"``, ``"activation_clips"``).

    Raises:
        InputError (a ValueError): a rate or the decay is negative.

    Example:
        >>> import torch, fastqat as fq
        >>> nn = torch.nn
        >>> net = fq.quantize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "w4a32", skip=())
        >>> [(g["name"], len(g["params"]), g["weight_decay"]) for g in fq.param_groups(net, lr=0.1, weight_decay=5e-4)]
        [('weights', 2, 0.0005), ('no_decay', 2, 0.0), ('scales', 2, 0.0)]
    """
    scale_lr = lr if scale_lr is None else scale_lr
    for name, value in (("lr", lr), ("scale_lr", scale_lr), ("weight_decay", weight_decay), ("activation_scale_lr", activation_scale_lr)):
        if value is not None and value < 0:
            raise InputError(f"{name} is {value}; accepted: 0 or more")
    kinds = _kinds(model, apart=activation_scale_lr is not None)
    rates = {  # name → learning rate, weight decay
        "weights": (lr, weight_decay),
        "no_decay": (lr, 0.0),
        "scales": (scale_lr, 0.0),
        "clips": (scale_lr, weight_decay),
        "activation_scales": (activation_scale_lr, 0.0),
        "activation_clips": (activation_scale_lr, weight_decay),
    }
    params = [(kinds.get(id(p), "weights"), p) for p in model.parameters()]
    groups = (
        {"name": name, "params": [p for kind, p in params if kind == name], "lr": rate, "weight_decay": decay}
        for name, (rate, decay) in rates.items()
    )
    return [group for group in groups if group["params"]]


def _kinds(model: nn.Module, apart: bool) -> dict[int, str]:
    """Id of a parameter → name of its group, for all that are not weights; `apart`: the quantizers of activations by names of their own."""
    plain = {
        id(p)
        for m in model.modules()
        for name, p in m.named_parameters(recurse=False)
        if isinstance(m, NORMS) or "bias" in name or p.dim() <= 1
    }
    kinds = dict.fromkeys(plain, "no_decay")
    for quantizer in (m for m in model.modules() if isinstance(m, Quantizer)):
        prefix = "activation_" if apart and quantizer.role == "activation" else ""
        for name, p in quantizer.named_parameters():
            kind = "clips" if name in quantizer.decayed else "scales"
            kinds[id(p)] = prefix + kind
    return kinds
