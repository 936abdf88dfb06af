"""Networks whose per-sample gradient norms every contender can find: group norm for batch norm, nothing in place, fixed positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .mobilenet import MobileNetV2, short_mobilenet_v2
from .vit import ViT


def group_norm(channels: int) -> nn.GroupNorm:
    """As many groups as divide `channels`, at most 32."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def refitted(model: nn.Module) -> nn.Module:
    """`model` with group norms in place of batch norms and nothing computed in place: what other packages insist on."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, group_norm(layer.num_features))
        elif hasattr(layer, "inplace"):
            layer.inplace = False
    return model


class Residual(nn.Module):
    """Two 3×3 convolutions with group norm, and a shortcut that is projected where the shape changes (He et al. 2016, figure 5)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            group_norm(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            group_norm(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), group_norm(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def resnet18(classes: int, widths: Sequence[int] = (64, 128, 256, 512), blocks: int = 2) -> nn.Module:
    """ResNet-18 for 32×32 pictures: a 3×3 stem that keeps their size, then `blocks` residual blocks of each width."""
    stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), group_norm(widths[0]), nn.ReLU())
    stages, channels = [], widths[0]
    for stage, width in enumerate(widths):
        for i in range(blocks):
            stages.append(Residual(channels, width, 2 if stage > 0 and i == 0 else 1))
            channels = width
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def mobilenet_v2(classes: int) -> nn.Module:
    """MobileNetV2 at full width; torchvision's has the same layers."""
    return refitted(_without_dropout(MobileNetV2(classes)))


def small_mobilenet_v2(classes: int) -> nn.Module:
    """Its stem, two stages and head."""
    return refitted(short_mobilenet_v2(classes))


def _without_dropout(model: MobileNetV2) -> MobileNetV2:
    model.classifier[0] = nn.Identity()
    return model


def vit(classes: int, **options: int) -> nn.Module:
    """The vision transformer of `bench.vit` with fixed positions: a parameter outside of any layer has no rule in other packages."""
    model = ViT(classes, **options)
    position = model.position.detach()
    del model.position
    model.register_buffer("position", position)
    return model


class Inception(nn.Module):
    """Three convolutions of different lengths behind a bottleneck, and a pooled branch, side by side (Fawaz et al. 2020, figure 1)."""

    def __init__(self, inputs: int, width: int, kernels: Sequence[int]):
        super().__init__()
        self.bottleneck = nn.Conv1d(inputs, width, 1, bias=False)
        self.branches = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False) for kernel in kernels)
        self.pooled = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(inputs, width, 1, bias=False))
        self.norm, self.relu = group_norm(width * (len(kernels) + 1)), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bottleneck(x)
        return self.relu(self.norm(torch.cat([*(branch(y) for branch in self.branches), self.pooled(x)], 1)))


class InceptionTime(nn.Module):
    """Inception modules for time series ``[N, channels, length]``, with a shortcut around every three (Fawaz et al. 2020)."""

    def __init__(self, classes: int, channels: int = 9, width: int = 32, depth: int = 6, kernels: Sequence[int] = (9, 19, 39)):
        super().__init__()
        outputs = width * (len(kernels) + 1)
        self.blocks = nn.ModuleList(Inception(channels if i == 0 else outputs, width, kernels) for i in range(depth))
        self.shortcuts = nn.ModuleList(
            nn.Sequential(nn.Conv1d(channels if i == 0 else outputs, outputs, 1, bias=False), group_norm(outputs))
            for i in range(0, depth - 2, 3)
        )
        self.relu, self.head = nn.ReLU(), nn.Linear(outputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        held = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i % 3 == 2:
                x = held = self.relu(x + self.shortcuts[i // 3](held))
        return self.head(x.mean(2))
