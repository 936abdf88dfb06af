"""LSQ: the scale is a parameter, learned with the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .base import SCALE_FLOOR, Quantizer
from .registry import register_quantizer
from .spec import QuantSpec
from .stats import RangeStats


def covering_scale(low: Tensor, high: Tensor, qmin: int, qmax: int) -> Tensor:
    """The smallest scale, at least SCALE_FLOOR, whose grid qmin·s … qmax·s covers [low, high]; unsigned grids leave out what is below 0."""
    scale = high / qmax if qmin == 0 else torch.maximum(low / qmin, high / qmax)
    return scale.clamp(min=SCALE_FLOOR)


def _traced_for_export() -> bool:
    # The dynamo of torch 2.10 answers True to is_exporting in an ordinary torch.compile too.
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


@register_quantizer("lsq")
class LSQ(Quantizer):
    """Learned step size: the scale is a parameter with its own gradient, symmetric codes.

    s₀ = 2·mean|x|/√qmax (``init="lsq"``), or the scale that covers the range seen (``init="minmax"``). The gradient is that of
    `fastqat.fake_quantize` times ``grad_factor``. The scale is projected onto s ≥ SCALE_FLOOR in place, at the start of each
    training forward and before it is saved: no host sync, the same on every process, and exact on resuming.

    `torch.export` takes the model in either mode; by default (``strict=False``) it leaves the parameter alone and the graph reads the
    scale as max(s, SCALE_FLOOR). What it returns computes outputs only; train the module itself.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020 (arXiv 1902.08153), sections 2.1 and 2.2.
    """

    inits = ("lsq", "minmax")

    def __init__(self, spec: QuantSpec, role: str, *, channels: int | None = None, axis: int | None = None):
        super().__init__(spec, role, channels=channels, axis=axis)
        self.scale = nn.Parameter(torch.ones(self.size))
        self.zero_point = None

    def set_range(self, stats: RangeStats) -> None:
        qmin, qmax = self.qrange()
        if self.spec.init == "minmax":
            scale = covering_scale(stats.low, stats.high, qmin, qmax)
        else:
            scale = (2 * stats.mean_abs / math.sqrt(qmax)).clamp(min=SCALE_FLOOR)
        self.scale.copy_(scale)

    def current(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.training and torch.is_grad_enabled() and not _traced_for_export():
            self._project()
            return self.scale, None
        return self.scale.clamp(min=SCALE_FLOOR), None

    def _project(self) -> None:
        # .data: a layer used twice in one forward projects twice, and the second time must not invalidate what the first saved.
        self.scale.data.clamp_(min=SCALE_FLOOR)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._project()
        super()._save_to_state_dict(destination, prefix, keep_vars)
