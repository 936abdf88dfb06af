"""param_groups(): optimizer groups that leave scales, norms and biases without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .._errors import InputError
from ..quantizers import Quantizer

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(model: nn.Module, lr: float, scale_lr: float | None = None, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: weights with decay; norms, biases and other vectors without; scales without and with their own rate.

    Every parameter is in exactly one group, one that several layers share too (a scale stays a scale). Empty groups are left out.
    Clipping values of ``"pact"`` are learned against an L2 penalty as strong as that of the weights (Choi et al., 2018): they
    have the weights' decay and the scales' rate.

    Args:
        model: any module, quantized or not.
        lr: learning rate.
        scale_lr: learning rate of the quantizers' parameters; None: `lr`.
        weight_decay: of the weights.

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay`` and ``name`` (``"weights"``, ``"no_decay"``, ``"scales"``,
        ``"clips"``).

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
    for name, value in (("lr", lr), ("scale_lr", scale_lr), ("weight_decay", weight_decay)):
        if value < 0:
            raise InputError(f"{name} is {value}; accepted: 0 or more")
    params = list(model.parameters())
    ranges = [(p, name in m.decayed) for m in model.modules() if isinstance(m, Quantizer) for name, p in m.named_parameters()]
    scales, clips = ({id(p) for p, decayed in ranges if decayed is clip} for clip in (False, True))
    plain = {
        id(p)
        for m in model.modules()
        for name, p in m.named_parameters(recurse=False)
        if isinstance(m, NORMS) or "bias" in name or p.dim() <= 1
    }
    groups = (
        {"name": "weights", "params": [p for p in params if id(p) not in scales | clips | plain], "lr": lr, "weight_decay": weight_decay},
        {"name": "no_decay", "params": [p for p in params if id(p) in plain - scales - clips], "lr": lr, "weight_decay": 0.0},
        {"name": "scales", "params": [p for p in params if id(p) in scales], "lr": scale_lr, "weight_decay": 0.0},
        {"name": "clips", "params": [p for p in params if id(p) in clips], "lr": scale_lr, "weight_decay": weight_decay},
    )
    return [group for group in groups if group["params"]]
