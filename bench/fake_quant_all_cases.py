"""Cases of `fastqat.fake_quantize_all`: the 53 convolution weights of a ResNet-50 in one call, against one tensor of their total size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastqat.ops.fake_quant.api import fake_quantize
from fastqat.ops.fake_quant_all.api import fake_quantize_all
from fastqat.testing import eager_lsq

from .case import Case, Contender, Goal, Results, Size, Work
from .fake_quant_work import QMAX, QMIN


def resnet50_shapes() -> Iterator[tuple[int, ...]]:
    """The shapes of the convolution weights of a ResNet-50 (He et al. 2016, table 1), in the order of its layers."""
    yield (64, 3, 7, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            if block == 0:
                yield (4 * width, inputs, 1, 1)
            inputs = 4 * width


@dataclass(frozen=True)
class Inputs:
    """Weights with a scale each, [1] or [channels] on axis 0, as LSQ initialises it; and the gradients of all w_hat."""

    weights: list[Tensor]
    scales: list[Tensor]
    grads: list[Tensor]
    axis: int | None

    @property
    def factors(self) -> list[float]:
        """The gradient factors of LSQ."""
        return [1 / math.sqrt(w.numel() // s.numel() * QMAX) for w, s in zip(self.weights, self.scales, strict=True)]

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes for w in self.weights)

    def leaves(self) -> Inputs:
        """The same with weights and scales of its own that want gradients."""
        weights, scales = ([t.clone().requires_grad_() for t in tensors] for tensors in (self.weights, self.scales))
        return Inputs(weights, scales, self.grads, self.axis)

    def joined(self) -> Inputs:
        """One tensor of the total size with one scale."""
        weights, grads = ([torch.cat([t.flatten() for t in tensors])] for tensors in (self.weights, self.grads))
        return Inputs(weights, [self.scales[0].mean().reshape(1)], grads, None)


Quantize = Callable[[Inputs], list[Tensor]]


def weights(axis: int | None) -> Callable[[Size], Inputs]:
    """A set-up: normal weights; the small size has every tenth of them."""

    def setup(size: Size) -> Inputs:
        torch.manual_seed(0)
        shapes = list(resnet50_shapes())[:: 10 if size == "small" else 1]
        xs, grads = ([torch.randn(shape) for shape in shapes] for _ in range(2))
        means = [x.abs().mean().reshape(1) if axis is None else x.abs().mean((1, 2, 3)) for x in xs]
        return Inputs(xs, [2 / math.sqrt(QMAX) * mean for mean in means], grads, axis)

    return setup


def _at_once(inputs: Inputs) -> list[Tensor]:
    return fake_quantize_all(inputs.weights, inputs.scales, qmin=QMIN, qmax=QMAX, axis=inputs.axis, grad_factors=inputs.factors)


def _one_by_one(inputs: Inputs) -> list[Tensor]:
    each = zip(inputs.weights, inputs.scales, inputs.factors, strict=True)
    return [fake_quantize(w, s, qmin=QMIN, qmax=QMAX, axis=inputs.axis, grad_factor=factor) for w, s, factor in each]


def _eager(inputs: Inputs) -> list[Tensor]:
    each = zip(inputs.weights, inputs.scales, inputs.factors, strict=True)
    return [eager_lsq(w, s if inputs.axis is None else s.view(-1, 1, 1, 1), QMIN, QMAX, factor) for w, s, factor in each]


def _forward(quantize: Quantize, prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs) -> Callable[[Inputs], Work]:
    """``quantize(inputs)`` without gradients."""

    def make(inputs: Inputs) -> Work:
        own = prepare(inputs)
        return Work(lambda: {f"w_hat {i}": w_hat for i, w_hat in enumerate(quantize(own))}, lambda: (*own.weights, *own.scales))

    return make


def _training(quantize: Quantize, prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs) -> Callable[[Inputs], Work]:
    """``quantize(inputs)`` and the gradients of all weights and scales."""

    def make(inputs: Inputs) -> Work:
        own = prepare(inputs).leaves()
        leaves = [*own.weights, *own.scales]

        def call() -> Results:
            found = torch.autograd.grad(quantize(own), leaves, own.grads)
            return {f"gradient {i}": grad for i, grad in enumerate(found)}

        return Work(call, lambda: (*leaves, *own.grads))

    return make


ONE = "one tensor"
PASSES = {"forward": (_forward, 2, "forward"), "training": (_training, 5, "forward + backward")}


def _case(way: str, granularity: str) -> Case:
    make, crossings, about = PASSES[way]
    return Case(
        f"all/{way}-{granularity}",
        f"fake_quantize_all, {about}, 53 weights of a ResNet-50, fp32, a scale per {granularity}",
        weights(0 if granularity == "channel" else None),
        Contender("fastqat", make(_at_once)),
        (
            Contender(ONE, make(_one_by_one, Inputs.joined), agrees=()),
            Contender("one by one", make(_one_by_one)),
            Contender("eager LSQ", make(_eager)),
        ),
        lambda inputs: crossings * inputs.nbytes,
        goals=(Goal(ONE, 1.3),),
        quick=granularity == "tensor",
        tolerance=1e-3,
    )


CASES = tuple(_case(way, granularity) for way in PASSES for granularity in ("tensor", "channel"))
