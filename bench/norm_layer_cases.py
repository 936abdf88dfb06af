"""Cases of per-sample gradient norms of single layers of ResNet-50: the direct form against the layer's ordinary weight gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastqat.ops.grad_norm import op
from fastqat.ops.grad_norm.geometry import Geometry, lift

from .case import Case, Contender, Goal, Size, Work

BATCH = 64


@dataclass(frozen=True)
class Shape:
    """A convolution of ResNet-50 at 224²: `side` is that of its input."""

    inputs: int
    outputs: int
    side: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def geometry(self) -> Geometry:
        """As the operator takes it."""
        k, s, p = self.kernel, self.stride, self.kernel // 2
        return Geometry(self.groups, (1, k, k), (1, s, s), (0, p, p), (1, 1, 1))

    @property
    def name(self) -> str:
        """As in ``3x3-64-56``: kernel, channels, and the side of the picture."""
        channels = self.inputs if self.inputs == self.outputs else f"{self.inputs}to{self.outputs}"
        more = (f"-stride{self.stride}" if self.stride > 1 else "") + (f"-groups{self.groups}" if self.groups > 1 else "")
        return f"{self.kernel}x{self.kernel}-{channels}-{self.side}{more}"

    @property
    def about(self) -> str:
        """In words."""
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        channels = f"{self.inputs} → {self.outputs} channels{groups}"
        return f"{self.kernel}×{self.kernel}, {channels} at {self.side}², stride {self.stride}, batch {BATCH}"


@dataclass(frozen=True)
class Layer:
    """A layer's input, the gradient of its output, and its weight."""

    shape: Shape
    x: Tensor
    grad_y: Tensor
    weight: Tensor

    @property
    def operations(self) -> int:
        """Of the weight gradient, and of the direct form: a multiplication and an addition per output element and weight of its channel."""
        return 2 * self.grad_y.numel() * self.weight[0].numel()


def setup(shape: Shape, size: Size) -> Layer:
    """Random inputs; small: two samples of at most 9²."""
    torch.manual_seed(0)
    samples, side = (2, min(shape.side, 9)) if size == "small" else (BATCH, shape.side)
    x = torch.randn(samples, shape.inputs, side, side)
    _, height, width = shape.geometry.output_size(lift(x).shape[2:])
    grad_y, weight = (
        torch.randn(samples, shape.outputs, height, width),
        torch.randn(shape.outputs, shape.inputs // shape.groups, shape.kernel, shape.kernel),
    )
    return Layer(shape, x, grad_y, weight)


def norms(form: str) -> Contender:
    """fastqat's norms by one form, or by the cheapest by count (``"auto"``)."""

    def make(layer: Layer) -> Work:
        x, grad_y, numbers = lift(layer.x), lift(layer.grad_y), layer.shape.geometry.encode()
        return Work(lambda: {"sq_norm": op.grad_sq_norm(x, grad_y, None, None, numbers, False, form)[0]})

    return Contender("fastqat" if form == "direct" else "cheapest form", make)


def weight_gradient(layer: Layer) -> Work:
    """torch's gradient of the weight, summed over the batch."""
    geometry = layer.shape.geometry
    options = geometry.stride[1:], geometry.padding[1:], geometry.dilation[1:], False, [0, 0], geometry.groups, [False, True, False]
    return Work(lambda: {"weight": torch.ops.aten.convolution_backward(layer.grad_y, layer.x, layer.weight, None, *options)[1]})


def case(shape: Shape) -> Case:
    """The direct form, as many operations as the weight gradient takes: at least 0.7 of its rate."""
    return Case(
        f"norms/layer-{shape.name}",
        f"norms of one layer in the direct form, {shape.about}",
        lambda size: setup(shape, size),
        norms("direct"),
        (Contender("weight gradient", weight_gradient, agrees=()), norms("auto")),
        flops=lambda layer: layer.operations,
        goals=(Goal("weight gradient", 1.43),),
        quick=False,
        seconds=6,
        tolerance=1e-4,
    )


SHAPES = (
    Shape(3, 64, 224, 7, 2),
    Shape(64, 64, 56, 3),
    Shape(128, 128, 56, 3, 2),
    Shape(128, 128, 28, 3),
    Shape(256, 256, 14, 3),
    Shape(512, 512, 7, 3),
    Shape(64, 256, 56, 1),
    Shape(256, 64, 56, 1),
    Shape(512, 128, 28, 1),
    Shape(1024, 256, 14, 1),
    Shape(512, 2048, 7, 1),
)

CASES = tuple(case(shape) for shape in SHAPES)
