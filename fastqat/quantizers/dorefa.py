"""DoReFa: weights normalised by tanh, activations clipped to [0, 1], both on a fixed grid."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Quantizer
from .layout import ScaleLayout
from .ranges import SCALE_FLOOR, covering_scale
from .registry import register_quantizer
from .spec import QuantSpec
from .stats import RangeStats

_NARROWER = 1 - 2.0**-22


@register_quantizer("dorefa")
class DoReFa(Quantizer):
    """Fixed grid: weights normalised by tanh, activations clipped to [0, 1]; nothing is learned.

        weights:      x_hat = rne(t/s)·s,  t = qmax·s·tanh(w)/max|tanh(w)|
        activations:  x_hat = clamp(rne(x/s), qmin, qmax)·s

    s is fixed: 1/qmax with ``init="paper"`` (default), so that weights fill [−1, 1] and activations are clipped to [0, 1] (signed ones,
    which the paper does not have, to [qmin/qmax, 1]). ``init="minmax"`` fixes s by the largest magnitude seen: for a float model that was
    trained with values of another size and has no batch norms to take up the change. Gradients go straight through the rounding, through
    tanh and its maximum, and stop at the clipping of activations.

    Where this differs from the paper: its 2ᵏ weight levels are odd multiples of 1/(2ᵏ−1), without a zero, which integer
    runtimes cannot represent (the zero point would be ½). Here the weights have the 2ᵏ−1 symmetric levels i/qmax, |i| ≤ qmax. Gradients
    of activations are not quantized.

    Weights that are all below SCALE_FLOOR are not normalised: t = qmax·s·tanh(w). Per tensor only, as the paper.

    Source: Zhou et al., DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients, 2016
    (arXiv 1606.06160), sections 2.3 and 2.4.

    Example:
        >>> import torch, fastqat as fq
        >>> weight = fq.quantizers.make_quantizer(fq.QuantSpec(2, "dorefa"), "weight")
        >>> w = torch.tensor([-0.02, 0.01, 0.05])
        >>> weight.initialise_from(w)
        >>> weight(w)
        tensor([0., 0., 1.])
    """

    inits = ("paper", "minmax")
    granularities = ("tensor",)

    def __init__(self, spec: QuantSpec, role: str, layout: ScaleLayout):
        super().__init__(spec, role, layout)
        self.register_buffer("scale", torch.ones(self.size))
        self.zero_point = None

    def set_range(self, stats: RangeStats) -> None:
        qmin, qmax = self.qrange()
        if self.init == "paper":
            self.scale.fill_(1 / qmax)
        elif self.role == "weight":
            self.scale.copy_((torch.maximum(-stats.low, stats.high) / qmax).clamp(min=SCALE_FLOOR))
        else:
            self.scale.copy_(covering_scale(stats.low, stats.high, qmin, qmax))

    def transform(self, x: Tensor) -> Tensor:
        if self.role == "activation":
            return x
        t = torch.tanh(x)
        top = (self.scale * (self.qrange()[1] * _NARROWER)).to(x.dtype)  # narrower: the largest weight never rounds out of the range
        largest = t.abs().amax()
        return t * (top / torch.where(largest < SCALE_FLOOR, 1, largest))

    def pivots(self, w: Tensor) -> Tensor | None:
        t = torch.tanh(w).abs().flatten()
        return torch.nonzero(t == t.amax()).flatten()
