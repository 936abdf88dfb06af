"""PACT: the clipping value is a parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .factors import per_scale_share, scaled_gradient
from .layout import ScaleLayout
from .learned import Learned
from .ranges import SCALE_FLOOR
from .registry import register_quantizer
from .spec import QuantSpec
from .stats import RangeStats

_WIDER = 1 + 2.0**-22


def _rounded(alpha: Tensor) -> Tensor:
    """`alpha` to 8 significant bits, half to even, gradient straight through; by its bits, as compilers drop a cast there and back."""
    bits = alpha.detach().float().view(torch.int32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)
    return rounded + (alpha - alpha.detach()) if alpha.requires_grad else rounded


@register_quantizer("pact")
class PACT(Learned):
    """Learned clipping value: activations are clipped at a parameter α that only clipped values move.

    x_hat = clamp(rne(y/s), qmin, qmax)·s,  y = min(x, α) (signed: clipped to [−α, α], qmin = −qmax),  s = α/qmax.

        grad x = grad_y inside, 0 where clipped
        grad α = g·Σ grad_y where x ≥ α (signed: minus grad_y where x ≤ −α), nothing from inside

    with g = 1, as in the paper, for ``grad_factor="paper"``; the other factors by name. s is 2⁻²² wider than α/qmax, so that a clipped
    value never rounds out of the range. α is the parameter `alpha` rounded to 8 significant bits (gradient straight through), which every
    dtype holds exactly, so that `scale` is what was trained whatever the dtype of x. Its gradient is summed in fp32. The layers keep y in
    place of x for the backward pass, and a byte per value that tells what was clipped.

    Weight decay: α moves up only by its gradient, and the paper pulls it down by an L2 penalty as strong as that of the weights.
    `fastqat.param_groups` therefore lists α in a group of its own (``"clips"``) with the weights' decay; without decay α can only be
    moved by the loss. α is kept at α ≥ qmax·SCALE_FLOOR (see `Learned`). Weights can be quantized too, in every granularity.

    First α: qmax times the scale that ``init`` finds: ``"mse"`` (default), ``"minmax"`` (the largest magnitude seen), ``"lsq"``,
    ``"sigma"``. The paper starts high and lets the decay bring α down over a whole training, for which fine-tuning has no time.

    Source: Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018 (arXiv 1805.06085), section 3.

    Example:
        >>> import torch, fastqat as fq
        >>> module = fq.nn.FakeQuantize(fq.QuantSpec(2, "pact", signed=False))
        >>> _ = fq.calibrate(module, [torch.tensor([[0.0, 3.0]])])
        >>> y = module(torch.tensor([[-1.0, 0.4, 1.2, 5.0]]))
        >>> y.sum().backward()
        >>> [round(v, 4) for v in y[0].tolist()], module.quantizer.alpha.grad
        ([0.0, 0.0, 1.0, 3.0], tensor([1.]))
    """

    inits = ("mse", "minmax", "lsq", "sigma")
    state_key = "alpha"
    paper_factor = "none"
    decayed = ("alpha",)

    def __init__(self, spec: QuantSpec, role: str, layout: ScaleLayout):
        super().__init__(spec, role, layout)
        self.alpha = nn.Parameter(torch.ones(self.size))
        self.zero_point = None

    @property
    def scale(self) -> Tensor:  # type: ignore[override]  # the base only reads it
        """s = α/qmax, without gradient."""
        return self._scale(self._alpha().detach())

    def qrange(self) -> tuple[int, int]:
        """Signed codes are symmetric, ±qmax, so that they clip at ±α wherever they are deployed."""
        qmin, qmax = super().qrange()
        return max(qmin, -qmax), qmax

    def set_range(self, stats: RangeStats) -> None:
        self.alpha.copy_(self.first_grid(stats)[0] * self.qrange()[1])

    def current(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._scale(self._alpha().detach()), None

    def transform(self, x: Tensor) -> Tensor:
        alpha = self._alpha()
        factor, per_scale = self._grad_factor(x)
        if per_scale or factor != 1:
            alpha = scaled_gradient(alpha, factor * per_scale_share(x, alpha) if per_scale else factor)
        alpha = self.layout.spread(alpha, x)
        y = torch.where(x >= alpha, alpha, x)  # fp32 from here on: the gradient of α is summed before it meets a narrower dtype
        if self.signed:
            y = torch.where(y <= -alpha, -alpha, y)
        return y.to(x.dtype)

    def pivots(self, w: Tensor) -> Tensor | None:
        return torch.empty(0, dtype=torch.int64, device=w.device)

    def _alpha(self) -> Tensor:
        return _rounded(self.alpha if self.projects() else self.alpha.clamp(min=self._floor()))

    def _scale(self, alpha: Tensor) -> Tensor:
        return alpha * (_WIDER / self.qrange()[1])

    def _floor(self) -> float:
        return self.qrange()[1] * SCALE_FLOOR

    def project(self) -> None:
        self.alpha.data.clamp_(min=self._floor())
