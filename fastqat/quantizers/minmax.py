"""Min-max observer: the scale follows the range of the values."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Quantizer
from .layout import ScaleLayout
from .ranges import covering
from .registry import register_quantizer
from .spec import QuantSpec
from .stats import RangeStats, range_of

MOMENTUM = 0.01
"""Weight of the newest batch in the moving average of an activation's range, as torch's MovingAverageMinMaxObserver."""


@register_quantizer("minmax")
class MinMax(Quantizer):
    """Observed range: weights by their current minimum and maximum, activations by a moving average.

    symmetric:  s = smallest scale that covers [low, high];  z = none
    asymmetric: s = (max(high, 0) − min(low, 0)) / (qmax − qmin);  z = clamp(round(qmin − min(low, 0)/s), qmin, qmax)

    The range moves in training forwards and is frozen in eval mode; a batch with NaN or infinite values does not move it.
    The scale is at least SCALE_FLOOR. Only x gets a gradient (straight through).

    In DistributedDataParallel every process moves the activations' range by its own share of the batch, and DDP's broadcast of buffers
    (``broadcast_buffers=True``, its default) starts each forward from the range of process 0, as for batch norm's running statistics:
    save and evaluate process 0. The ranges of weights are the same everywhere.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018
    (arXiv 1712.05877), section 3.

    Example:
        >>> import torch, fastqat as fq
        >>> module = fq.nn.FakeQuantize(fq.QuantSpec(8, "minmax", symmetric=False, signed=False))
        >>> _ = fq.calibrate(module, [torch.tensor([[-1.0, 1.55]])])
        >>> module.quantizer.scale, module.quantizer.zero_point
        (tensor([0.0100]), tensor([100], dtype=torch.int32))
    """

    inits = ("minmax",)
    has_zero_point = True

    low: Tensor
    high: Tensor

    def __init__(self, spec: QuantSpec, role: str, layout: ScaleLayout):
        super().__init__(spec, role, layout)
        self.register_buffer("low", torch.zeros(self.size))
        self.register_buffer("high", torch.zeros(self.size))
        self.register_buffer("scale", torch.ones(self.size))
        self.register_buffer("zero_point", None if spec.symmetric else torch.zeros(self.size, dtype=torch.int32))

    def set_range(self, stats: RangeStats) -> None:
        self._store(stats.low, stats.high)

    def current(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.training:
            return self.scale, self.zero_point
        with torch.no_grad():
            return self._store(*self._moved(x)) if x.numel() else self._derive(self.low, self.high)

    def _moved(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range after seeing x."""
        low, high = (bound.float() for bound in range_of(x.detach(), self.layout))
        finite = torch.isfinite(low) & torch.isfinite(high)
        if self.role == "activation":
            low, high = torch.lerp(self.low, low, MOMENTUM), torch.lerp(self.high, high, MOMENTUM)
        return torch.where(finite, low, self.low), torch.where(finite, high, self.high)

    def _store(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
        """Keep the range and what follows from it; return new tensors, as a layer used twice must not change what backward needs."""
        scale, zero_point = self._derive(low, high)
        self.low.copy_(low)
        self.high.copy_(high)
        self.scale.copy_(scale)
        if self.zero_point is not None and zero_point is not None:
            self.zero_point.copy_(zero_point)
        return scale, zero_point

    def _derive(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
        return covering(low, high, self.code_range())
