"""Models by name: small residual nets for 32×32 pictures and for series, the width-halved MobileNetV2 of the ACS paper, torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat._errors import InputError


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters: strided and padded with zero channels (option A)."""

    conv: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv2d
    norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d] = nn.BatchNorm2d

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.extra = stride, outputs - inputs
        self.conv1 = self.conv(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = self.norm(outputs)
        self.conv2 = self.conv(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = self.norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            positions = x.dim() - 2
            strided: Any = (..., *[slice(None, None, self.stride)] * positions)
            x = F.pad(x[strided], (*[0, 0] * positions, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(out + x)


class BasicBlock1d(BasicBlock):
    """The same block for series ``[N, C, L]``: convolutions of length 3."""

    conv, norm = nn.Conv1d, nn.BatchNorm1d


class SmallResNet(nn.Module):
    """The CIFAR residual net of depth 6n + 2 and widths 16, 32, 64 (He et al. 2016, section 4.2).

    Args:
        depth: 8, 20, 32, ...: two more than a multiple of six.
        num_classes: length of the logits.
        channels: input channels; pictures of 8×8 and more.

    Example:
        >>> import torch
        >>> SmallResNet(8, 10, channels=1)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int, num_classes: int, channels: int = 3):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(BasicBlock(inputs if i == 0 else width, width, stride if i == 0 else 1) for i in range(blocks)))
            for inputs, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.fc = nn.Linear(64, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResNet1d(nn.Module):
    """A residual net for series: a stem of length 5, three blocks of widths 32, 64, 128 at strides 1, 2, 2, mean over the positions.

    Args:
        num_classes: length of the logits.
        channels: input channels; series of 8 values and more.

    Example:
        >>> import torch
        >>> ResNet1d(7, channels=6)(torch.zeros(2, 6, 100)).shape
        torch.Size([2, 7])
    """

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, 32, 5, 1, 2, bias=False)
        self.bn1 = nn.BatchNorm1d(32)
        self.layer1, self.layer2, self.layer3 = (BasicBlock1d(*sizes) for sizes in ((32, 32, 1), (32, 64, 2), (64, 128, 2)))
        self.fc = nn.Linear(128, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean(2))


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1; a shortcut where shapes allow (Sandler et al. 2018, figure 4)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers = _conv_bn_relu6(inputs, hidden, 1) if expansion > 1 else []
        layers += _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden)
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2Half(nn.Module):
    """MobileNetV2 with half the channels, for 32×32: strides 1 in the stem and the second stage (ACS, CIFAR-100 experiments).

    Example:
        >>> import torch
        >>> MobileNetV2Half(100, channels=3)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """

    # expansion, channels at full width, blocks, stride of the first block
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, num_classes: int, channels: int = 3):
        super().__init__()
        width = _multiple_of_8(32 / 2)
        layers: list[nn.Module] = [*_conv_bn_relu6(channels, width, 3)]
        for expansion, full, blocks, stride in self.STAGES:
            outputs = _multiple_of_8(full / 2)
            for i in range(blocks):
                layers.append(InvertedResidual(width, outputs, stride if i == 0 else 1, expansion))
                width = outputs
        self.features = nn.Sequential(*layers, *_conv_bn_relu6(width, 1280, 1))
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(1280, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)))


def _conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True)]


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and never more than a tenth below `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet8": lambda classes, channels: SmallResNet(8, classes, channels),
    "resnet20": lambda classes, channels: SmallResNet(20, classes, channels),
    "resnet32": lambda classes, channels: SmallResNet(32, classes, channels),
    "mobilenet_v2_half": MobileNetV2Half,
}
SERIES_MODELS: dict[str, Callable[[int, int], nn.Module]] = {"resnet1d": ResNet1d}


def make_model(name: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Build a model by name with fresh weights (seed them with `torch.manual_seed` before).

    Args:
        name: one of `MODELS` or `SERIES_MODELS`, or a classification model of torchvision (``resnet18``, ``mobilenet_v2``, ...).
        num_classes: length of the logits.
        input_shape: ``(channels, height, width)``, of series ``(channels, length)``; a torchvision model gets a first convolution for
            these channels.

    Raises:
        InputError: unknown name, no torchvision for one of its models, or inputs that are not pictures of 8×8 and more, or for a series
            model no series of 8 and more.

    Example:
        >>> make_model("resnet8", 10, (1, 28, 28)).conv1
        Conv2d(1, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    if name in SERIES_MODELS:
        if len(input_shape) != 2 or input_shape[1] < 8:
            raise InputError(f"model {name!r} takes series (channels, length) of 8 and more; the data set has {input_shape}")
        return SERIES_MODELS[name](num_classes, input_shape[0])
    if len(input_shape) != 3 or min(input_shape[1:]) < 8:
        told = f"model {name!r} takes pictures (channels, height, width) of 8x8 and more; the data set has {input_shape}"
        raise InputError(f"{told}; for series there is {', '.join(SERIES_MODELS)}" if len(input_shape) == 2 else told)
    if name in MODELS:
        return MODELS[name](num_classes, input_shape[0])
    return _torchvision_model(name, num_classes, input_shape[0])


def _torchvision_model(name: str, num_classes: int, channels: int) -> nn.Module:
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # a torchvision beside the wrong torch fails with RuntimeError
        raise InputError(
            f"model {name!r} is not one of {', '.join(MODELS)}, and for those of torchvision: torchvision does not import "
            f"({error}); install the one that fits your torch"
        ) from error
    if name not in models.list_models(module=models):
        raise InputError(f"unknown model {name!r}; accepted: {', '.join(MODELS)}, or a classifier of torchvision, such as resnet18")
    model = models.get_model(name, weights=None, num_classes=num_classes)
    if channels != 3:
        _replace_first_conv(model, channels)
    return model


def _replace_first_conv(model: nn.Module, channels: int) -> None:
    """Give the first 3-channel convolution `channels` inputs, with fresh weights."""
    for path, conv in model.named_modules():
        if type(conv) is nn.Conv2d and conv.in_channels == 3:
            parent = model.get_submodule(path.rpartition(".")[0])
            bias = conv.bias is not None
            new = nn.Conv2d(channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, bias)  # type: ignore[arg-type]
            setattr(parent, path.rpartition(".")[2], new)
            return
    raise InputError(f"no convolution with 3 input channels to adapt to {channels} channels; use a model of {', '.join(MODELS)}")


def count_parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def first_mismatch(model: nn.Module, state: dict[str, Tensor]) -> str | None:
    """What keeps `state` from being this model's, in words; None when names and shapes agree."""
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    for name, value in own.items():
        if name not in state:
            return f"it has no {name}"
        if isinstance(state[name], torch.Tensor) and state[name].shape != value.shape:
            return f"{name} has shape {tuple(state[name].shape)}, the model {tuple(value.shape)}"
    unknown = [name for name in state if name not in model.state_dict()]
    return f"it has {unknown[0]}, which the model has not" if unknown else None
