"""MobileNetV2 (Sandler et al. 2018, table 2): torchvision's where it imports, else the same network written here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.train.models import InvertedResidual, MobileNetV2Half, make_model


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class MobileNetV2(nn.Module):
    """At full width, with the strides of ImageNet: the stem and the second stage halve the picture.

    `stages`: expansion, channels, blocks and stride of each, on small pictures.
    """

    def __init__(self, classes: int, stages: Sequence[tuple[int, int, int, int]] = MobileNetV2Half.STAGES):
        super().__init__()
        width, layers = 32, [_conv(3, 32, 3, 2)]
        for stage, (expansion, outputs, blocks, stride) in enumerate(stages):
            for i in range(blocks):
                halves = i == 0 and (stride == 2 or stage == 1)
                layers.append(InvertedResidual(width, outputs, 2 if halves else 1, expansion))
                width = outputs
        self.features = nn.Sequential(*layers, _conv(width, 1280, 1, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2(classes: int) -> nn.Module:
    """MobileNetV2 with fresh weights; without dropout, so that contenders see the same network in every step."""
    try:
        model = make_model("mobilenet_v2", classes, (3, 64, 64))
    except InputError:
        model = MobileNetV2(classes)
    model.classifier[0] = nn.Identity()
    return model


def short_mobilenet_v2(classes: int) -> nn.Module:
    """The stem, two stages and the head of MobileNetV2, for tests."""
    model = MobileNetV2(classes, MobileNetV2Half.STAGES[:2])
    model.classifier[0] = nn.Identity()
    return model
