"""Cases of `fastqat.fake_quantize`: one million elements, forward alone and forward with backward, by granularity, layout and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastqat.ops.fake_quant.api import fake_quantize
from fastqat.testing import eager_lsq

from .case import Case, Contender, Goal, Results, Size, Work, needs_compiler, needs_package, never

QMIN, QMAX = -8, 7


@dataclass(frozen=True)
class Inputs:
    """x and grad_y of one shape; scale [1] or [channels] on `axis`, as LSQ initialises it."""

    x: Tensor
    grad_y: Tensor
    scale: Tensor
    axis: int | None
    grad_factor: float

    @property
    def zero_point(self) -> Tensor:
        return torch.zeros_like(self.scale)

    @property
    def broadcast_scale(self) -> Tensor:
        """The scale in a shape that multiplies x."""
        return self.scale if self.axis is None else self.scale.view([-1 if d == self.axis else 1 for d in range(self.x.dim())])


def tensors(
    shape: tuple[int, ...], *, axis: int | None = None, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> Callable[[Size], Inputs]:
    """A set-up: normal values of `shape`; the small size has 1/16 of the first dimension."""

    def setup(size: Size) -> Inputs:
        torch.manual_seed(0)
        real = (max(1, shape[0] // 16), *shape[1:]) if size == "small" else shape
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, grad_y = (torch.randn(real).to(dtype).contiguous(memory_format=layout) for _ in range(2))
        kept = [d for d in range(x.dim()) if d != axis]
        scale = 2 * (x.float().abs().mean(kept) if axis is not None else x.float().abs().mean().reshape(1)) / math.sqrt(QMAX)
        return Inputs(x, grad_y, scale, axis, 1 / math.sqrt(x.numel() // scale.numel() * QMAX))

    return setup


def bytes_forward(inputs: Inputs) -> int:
    """x read, x_hat written."""
    return 2 * inputs.x.nbytes


def bytes_both(inputs: Inputs) -> int:
    """Forward, then x and grad_y read and grad_x written."""
    return 5 * inputs.x.nbytes


def forward_of(quantize: Callable[[Inputs, Tensor, Tensor], Tensor]) -> Callable[[Inputs], Work]:
    """``quantize(inputs, x, scale)`` without gradients."""
    return lambda inputs: Work(lambda: {"x_hat": quantize(inputs, inputs.x, inputs.scale)})


def trained(quantize: Callable[[Inputs, Tensor, Tensor], Tensor], *, broadcast: bool = False) -> Callable[[Inputs], Work]:
    """``quantize(inputs, x, scale)`` and its gradients for x and scale; `broadcast`: it wants the scale in a shape that multiplies x."""

    def make(inputs: Inputs) -> Work:
        x = inputs.x.clone(memory_format=torch.preserve_format).requires_grad_()
        scale = (inputs.broadcast_scale if broadcast else inputs.scale).clone().requires_grad_()

        def call() -> Results:
            x_hat = quantize(inputs, x, scale)
            grad_x, grad_scale = torch.autograd.grad(x_hat, (x, scale), inputs.grad_y)
            return {"x_hat": x_hat.detach(), "grad_x": grad_x, "grad_scale": grad_scale.flatten()}

        return Work(call)

    return make


def _ours(inputs: Inputs, x: Tensor, scale: Tensor) -> Tensor:
    return fake_quantize(x, scale, qmin=QMIN, qmax=QMAX, axis=inputs.axis, grad_factor=inputs.grad_factor)


def _plain_torch(inputs: Inputs, x: Tensor, scale: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, float(scale), 0, QMIN, QMAX)


def _learnable(inputs: Inputs, x: Tensor, scale: Tensor) -> Tensor:
    if inputs.axis is None:
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, inputs.zero_point, QMIN, QMAX, inputs.grad_factor)
    return torch._fake_quantize_learnable_per_channel_affine(x, scale, inputs.zero_point, inputs.axis, QMIN, QMAX, inputs.grad_factor)


def _eager(inputs: Inputs, x: Tensor, scale: Tensor) -> Tensor:
    return eager_lsq(x, scale, QMIN, QMAX, inputs.grad_factor)


def _compiled(inputs: Inputs) -> Work:
    torch.compiler.reset()
    compiled = torch.compile(eager_lsq, fullgraph=True, dynamic=False)
    return trained(lambda own, x, scale: compiled(x, scale, QMIN, QMAX, own.grad_factor), broadcast=True)(inputs)


def _brevitas(inputs: Inputs) -> Work:
    from brevitas.core.quant import IntQuant

    quantizer = IntQuant(narrow_range=False, signed=True, input_view_impl=torch.nn.Identity())
    zero, bits = torch.tensor(0.0), torch.tensor(4.0)
    return trained(lambda own, x, scale: quantizer(scale, zero, bits, x), broadcast=True)(inputs)


def _torchao(inputs: Inputs) -> Work:
    from torchao.quantization.quant_primitives import _fake_quantize_affine

    block = tuple(1 if d == inputs.axis else n for d, n in enumerate(inputs.x.shape))
    zero = torch.zeros(inputs.scale.shape)
    return trained(lambda own, x, scale: _fake_quantize_affine(x, block, scale, zero, torch.int8, QMIN, QMAX))(inputs)


COPY = Contender("x.clone()", lambda inputs: Work(lambda: {"copy": inputs.x.clone()}, moved=2 * inputs.x.nbytes), agrees=())
# torch tests the range on the rounded value, so its gradients differ by design in half a step at both ends.
LEARNABLE = Contender("torch learnable", trained(_learnable), agrees=("x_hat",))
FP32_ONLY = Contender("torch learnable", trained(_learnable), reason=never("its backward takes float32 only"), agrees=())
EAGER = Contender("eager LSQ", trained(_eager, broadcast=True))
COMPILED = Contender("compiled LSQ", _compiled, reason=needs_compiler)
# Both clamp after rounding and have no gradient factor.
BREVITAS = Contender("brevitas", _brevitas, reason=needs_package("brevitas"), agrees=("x_hat",))
TORCHAO = Contender("torchao", _torchao, reason=needs_package("torchao"), agrees=("x_hat",))


def _lsq_case(variant: str, about: str, setup: Callable[[Size], Inputs], learnable: Contender = LEARNABLE, **options: Any) -> Case:
    peers = (COPY, learnable, EAGER, COMPILED, BREVITAS, TORCHAO)
    return Case(
        f"lsq/{variant}", f"LSQ forward + backward, {about}", setup, Contender("fastqat", trained(_ours)), peers, bytes_both, **options
    )


CASES = (
    Case(
        "fake_quantize/forward",
        "forward, 1M fp32, one scale",
        tensors((1024, 1024)),
        Contender("fastqat", forward_of(_ours)),
        (
            COPY,
            Contender("torch fake_quantize", forward_of(_plain_torch)),
            Contender("eager LSQ", forward_of(_eager)),
        ),
        bytes_forward,
        goals=(Goal("x.clone()", 1.4),),
        tolerance=1e-3,
    ),
    _lsq_case(
        "tensor",
        "1M fp32, one scale",
        tensors((1024, 1024)),
        goals=(Goal("torch learnable", 1 / 25), Goal("eager LSQ", 1 / 15), Goal("compiled LSQ", 1 / 2)),
        tolerance=1e-3,
    ),
    _lsq_case(
        "channel",
        "1M fp32 weights [256, 256, 4, 4], a scale per output channel",
        tensors((256, 256, 4, 4), axis=0),
        tolerance=1e-3,
        quick=False,
    ),
    _lsq_case(
        "channels_last",
        "1M fp32 activations [8, 128, 32, 32] in channels-last order",
        tensors((8, 128, 32, 32), channels_last=True),
        tolerance=1e-3,
        quick=False,
    ),
    _lsq_case("bf16", "1M bfloat16, one scale", tensors((1024, 1024), dtype=torch.bfloat16), FP32_ONLY, tolerance=2e-2, quick=False),
)
