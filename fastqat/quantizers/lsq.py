"""LSQ: the scale is a parameter, learned with the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layout import ScaleLayout
from .learned import Learned
from .ranges import SCALE_FLOOR
from .registry import register_quantizer
from .spec import QuantSpec
from .stats import RangeStats


@register_quantizer("lsq")
class LSQ(Learned):
    """Learned step size: the scale is a parameter with its own gradient, symmetric codes.

    x_hat = clamp(rne(x/s), qmin, qmax)·s. The gradient of s is that of `fastqat.fake_quantize` times ``grad_factor``, summed over what
    shares the scale: grad_y·qmin below the range, grad_y·(rne(x/s) − x/s) inside, grad_y·qmax above.

    First scale: ``init="lsq"`` 2·mean|x|/√qmax (default), ``"minmax"``, ``"mse"``, ``"sigma"``. The scale is kept at s ≥ SCALE_FLOOR
    (see `Learned`).

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020 (arXiv 1902.08153), sections 2.1 and 2.2.

    Example:
        >>> import torch, fastqat as fq
        >>> layer = fq.nn.QuantLinear(128, 4, weight=fq.QuantSpec(4, "lsq", granularity=("group", 64), init="mse"))
        >>> layer(torch.ones(2, 128)).sum().backward()
        >>> layer.weight_quantizer.scale.grad.shape
        torch.Size([4, 2])
    """

    inits = ("lsq", "minmax", "mse", "sigma")

    def __init__(self, spec: QuantSpec, role: str, layout: ScaleLayout):
        super().__init__(spec, role, layout)
        self.scale = nn.Parameter(torch.ones(self.size))
        self.zero_point = None

    def set_range(self, stats: RangeStats) -> None:
        self.scale.copy_(self.first_grid(stats)[0])

    def current(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return (self.scale if self.projects() else self.scale.clamp(min=SCALE_FLOOR)), None

    def project(self) -> None:
        self.scale.data.clamp_(min=SCALE_FLOOR)
