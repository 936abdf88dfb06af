"""LSQ+: scale and offset are parameters; the offset becomes an integer zero point."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layout import ScaleLayout
from .learned import Learned
from .ranges import SCALE_FLOOR
from .registry import register_quantizer
from .spec import QuantSpec
from .stats import RangeStats


@register_quantizer("lsq_plus")
class LSQPlus(Learned):
    """Learned step size and zero point: LSQ with a learned offset, kept as an integer zero point that deploys.

    With ``symmetric=False`` (what the paper advises for activations), s and β the parameters `scale` and `offset`:

        z = rne(−β/s),  x_hat = (clamp(rne(x/s) + z, qmin, qmax) − z)·s

    The paper has x_hat = clamp(rne((x − β)/s), qmin, qmax)·s + β: equal where β/s is an integer, but its grid misses zero elsewhere, so
    that padding is not exact and no integer runtime can take it. The offset is a parameter in units of x, as there, so that both
    learn at the same pace. Gradients are those of `fastqat.fake_quantize` for s and z, with rne taken as the identity, through z = −β/s:

        grad β = g·Σ grad_y outside the range, 0 inside
        grad s = g·Σ grad_y·(qmin − rne(z) + z below, rne(x/s) − x/s inside, qmax − rne(z) + z above),  z = −β/s unrounded

    with ``grad_factor`` g; within rounding of z the paper's grad_y·qmin and grad_y·qmax. Parameters are kept at s ≥ SCALE_FLOOR and
    −qmax·s ≤ β ≤ −qmin·s (see `Learned`), so that z is in [qmin, qmax] and zero is representable. With ``symmetric=True`` there is no
    offset: LSQ with the initialisations of this file, as the paper has for weights.

    First range: ``init="minmax"`` (default), ``"mse"`` (the paper's for activations), ``"sigma"`` μ ± 3σ (the paper's for weights),
    ``"lsq"`` 2·mean|x|/√qmax (symmetric only).

    Source: Bhalgat et al., LSQ+: Improving low-bit quantization through learnable offsets and better initialization, CVPR workshops 2020
    (arXiv 2004.09576), sections 3.1 and 3.2.

    Example:
        >>> import torch, fastqat as fq
        >>> module = fq.nn.FakeQuantize(fq.QuantSpec(4, "lsq_plus", symmetric=False, signed=False))
        >>> _ = fq.calibrate(module, [torch.linspace(-0.5, 1, 31).view(1, -1)])
        >>> module(torch.tensor([[-0.5, 0.0, 0.52, 3.0]])).detach()
        tensor([[-0.5000,  0.0000,  0.5000,  1.0000]])
        >>> module.quantizer.zero_point
        tensor([5], dtype=torch.int32)
    """

    inits = ("minmax", "mse", "sigma", "lsq")
    has_zero_point = True

    offset: Tensor | None

    def __init__(self, spec: QuantSpec, role: str, layout: ScaleLayout):
        super().__init__(spec, role, layout)
        self.scale = nn.Parameter(torch.ones(self.size))
        self.offset = None if spec.symmetric else nn.Parameter(torch.zeros(self.size))

    @property
    def zero_point(self) -> Tensor | None:  # type: ignore[override]  # the base only reads it
        """z as it is deployed: int32, in [qmin, qmax]; None when symmetric."""
        if self.offset is None:
            return None
        return torch.round(-self.offset.detach() / self._scale().detach()).clamp(*self.qrange()).to(torch.int32)

    def set_range(self, stats: RangeStats) -> None:
        scale, zero_point = self.first_grid(stats)
        self.scale.copy_(scale)
        if self.offset is not None and zero_point is not None:
            self.offset.copy_(-zero_point * scale)

    def current(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.projects():  # −β/s is then in the range but for rounding, which the op's own rounding to an integer takes away
            return self.scale, None if self.offset is None else -self.offset / self.scale
        scale = self._scale()
        return scale, None if self.offset is None else (-self.offset / scale).clamp(*self.qrange())

    def _scale(self) -> Tensor:
        return self.scale.clamp(min=SCALE_FLOOR)

    def project(self) -> None:
        scale = self.scale.data.clamp_(min=SCALE_FLOOR)
        if self.offset is not None:
            qmin, qmax = self.qrange()
            self.offset.data.clamp_(-qmax * scale, -qmin * scale)
