"""What the cases of `fastqat.fake_quantize` share: their inputs, the work of a forward, a backward or both, and the copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastqat.ops.fake_quant.api import fake_quantize

from .case import Contender, Results, Size, Work

QMIN, QMAX = -8, 7


@dataclass(frozen=True)
class Inputs:
    """x and grad_y of one shape, and LSQ's first scale: [1], [channels] on `axis`, or per group of `group_size` along `axis`."""

    x: Tensor
    grad_y: Tensor
    scale: Tensor
    axis: int | None
    grad_factor: float
    group_size: int | None = None

    @property
    def zero_point(self) -> Tensor:
        return torch.zeros_like(self.scale)

    @property
    def broadcast_scale(self) -> Tensor:
        """The scale in a shape that multiplies `split(x)`."""
        if self.group_size is not None and self.axis is not None:
            return self.scale.unsqueeze(self.axis + 1)
        return self.scale if self.axis is None else self.scale.view([-1 if d == self.axis else 1 for d in range(self.x.dim())])

    def split(self, x: Tensor) -> Tensor:
        """x with the axis of the groups as two, [groups, group_size]; x itself where there are no groups."""
        return x if self.group_size is None or self.axis is None else x.unflatten(self.axis, (-1, self.group_size))


Setup = Callable[[Size], Inputs]
Quantize = Callable[[Inputs, Tensor, Tensor], Tensor]


def tensors(
    shape: tuple[int, ...],
    *,
    axis: int | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    device: str = "cpu",
) -> Setup:
    """A set-up: normal values of `shape`; the small size has 1/512 of the first dimension, at least four."""

    def setup(size: Size) -> Inputs:
        torch.manual_seed(0)
        real = (max(4, shape[0] // 512), *shape[1:]) if size == "small" else shape
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, grad_y = (torch.randn(real, device=device).to(dtype).contiguous(memory_format=layout) for _ in range(2))
        scale = 2 / math.sqrt(QMAX) * _mean_size(x, axis, group_size)
        return Inputs(x, grad_y, scale, axis, 1 / math.sqrt(x.numel() // scale.numel() * QMAX), group_size)

    return setup


def _mean_size(x: Tensor, axis: int | None, group_size: int | None) -> Tensor:
    """Mean of abs(x) over what shares a scale, in fp32, shaped as a scale."""
    if axis is None:
        return x.abs().mean(dtype=torch.float32).reshape(1)
    if group_size is not None:
        return x.unflatten(axis, (-1, group_size)).abs().mean(axis + 1, dtype=torch.float32)
    return x.abs().mean([d for d in range(x.dim()) if d != axis], dtype=torch.float32)


def bytes_forward(inputs: Inputs) -> int:
    """x and scale read, x_hat written."""
    return 2 * inputs.x.nbytes + inputs.scale.nbytes


def bytes_backward(inputs: Inputs) -> int:
    """x, grad_y and scale read, grad_x and grad_scale written."""
    return 3 * inputs.x.nbytes + 2 * inputs.scale.nbytes


def bytes_both(inputs: Inputs) -> int:
    """A forward, then a backward."""
    return bytes_forward(inputs) + bytes_backward(inputs)


def forward_of(quantize: Quantize) -> Callable[[Inputs], Work]:
    """``quantize(inputs, x, scale)`` without gradients."""
    return lambda inputs: Work(lambda: {"x_hat": quantize(inputs, inputs.x, inputs.scale)})


def _leaves(inputs: Inputs, broadcast: bool) -> tuple[Tensor, Tensor]:
    """x and scale that want gradients."""
    scale = inputs.broadcast_scale if broadcast else inputs.scale
    return inputs.x.clone(memory_format=torch.preserve_format).requires_grad_(), scale.clone().requires_grad_()


def backward_of(quantize: Quantize) -> Callable[[Inputs], Work]:
    """The gradients of ``quantize(inputs, x, scale)`` for x and scale, through autograd as a training step asks for them."""

    def make(inputs: Inputs) -> Work:
        x, scale = _leaves(inputs, broadcast=False)
        x_hat = quantize(inputs, x, scale)

        def call() -> Results:
            grad_x, grad_scale = torch.autograd.grad(x_hat, (x, scale), inputs.grad_y, retain_graph=True)
            return {"grad_x": grad_x, "grad_scale": grad_scale}

        return Work(call, lambda: (x, scale, x_hat, inputs.grad_y))

    return make


def trained(quantize: Quantize, *, broadcast: bool = False) -> Callable[[Inputs], Work]:
    """``quantize(inputs, x, scale)`` and its gradients for x and scale.

    `broadcast`: it wants ``split(x)`` and a scale that multiplies it.
    """

    def make(inputs: Inputs) -> Work:
        x, scale = _leaves(inputs, broadcast)

        def call() -> Results:
            x_hat = quantize(inputs, inputs.split(x), scale).view(x.shape) if broadcast else quantize(inputs, x, scale)
            grad_x, grad_scale = torch.autograd.grad(x_hat, (x, scale), inputs.grad_y)
            return {"x_hat": x_hat.detach(), "grad_x": grad_x, "grad_scale": grad_scale.flatten()}

        return Work(call)

    return make


def ours(inputs: Inputs, x: Tensor, scale: Tensor) -> Tensor:
    """`fastqat.fake_quantize` as the case asks for it."""
    return fake_quantize(x, scale, qmin=QMIN, qmax=QMAX, axis=inputs.axis, group_size=inputs.group_size, grad_factor=inputs.grad_factor)


COPY = Contender("x.clone()", lambda inputs: Work(lambda: {"copy": inputs.x.clone()}, moved=2 * inputs.x.nbytes), agrees=())
