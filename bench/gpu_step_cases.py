"""Cases of a whole training step on a GPU under bfloat16 autocast, W4A4: against the float step and the same network by other means."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastqat.testing import eager_lsq_copy
from fastqat.train.models import InvertedResidual

from .case import Case, Contender, Goal, Size, needs_compiler, needs_package
from .mobilenet import mobilenet_v2
from .resnet import Bottleneck, resnet50
from .step_cases import CLASSES, Inputs, Net, step_of
from .step_peers import brevitas_copy
from .vit import ViT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Autocast(nn.Module):
    """The model under bfloat16 autocast, its logits in fp32 again; fp64 pictures, of the tests of agreement, go through it as they are."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=x.dtype == torch.float32):
            y = self.model(x)
        return y.float() if y.dtype == torch.bfloat16 else y


def _on_device(net: Net) -> Callable[[Size], Inputs]:
    def setup(size: Size) -> Inputs:
        inputs = net.setup(size)
        return Inputs(inputs.model.to(DEVICE), inputs.x.to(DEVICE), inputs.y.to(DEVICE))

    return setup


def _step(build: Callable[[Inputs], nn.Module]) -> Callable[[Inputs], object]:
    return step_of(lambda inputs: Autocast(build(inputs)))


def _compiled(build: Callable[[Inputs], nn.Module]) -> Callable[[Inputs], object]:
    return step_of(lambda inputs: torch.compile(Autocast(build(inputs)), dynamic=False))


def _eager(inputs: Inputs) -> nn.Module:
    return eager_lsq_copy(inputs.quantized())


FLOAT = Contender("float", _step(lambda inputs: copy.deepcopy(inputs.model)), agrees=())
EAGER = Contender("eager LSQ", _step(_eager))
BREVITAS = Contender("brevitas", _step(lambda inputs: brevitas_copy(inputs.quantized())), needs_package("brevitas"), agrees=())
COMPILED = (
    Contender("compiled LSQ", _compiled(_eager), needs_compiler, quick=False),
    Contender("compiled fastqat", _compiled(Inputs.quantized), needs_compiler, quick=False),
)


def _case(variant: str, about: str, net: Net, most: float) -> Case:
    return Case(
        f"gpu/step/{variant}",
        f"training step on a GPU, {about} at {net.side}², batch {net.batch}, bf16 autocast, W4A4",
        _on_device(net),
        Contender("fastqat", _step(Inputs.quantized)),
        (FLOAT, EAGER, *COMPILED, BREVITAS),
        goals=(
            Goal(FLOAT.name, most),
            Goal(FLOAT.name, 1.07, "memory"),
            *(Goal(peer.name, 1.0) for peer in (EAGER, COMPILED[0], BREVITAS)),
        ),
        seconds=15,
        device="cuda",
        clock="stream",
    )


def _few_blocks(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


RESNET50 = Net(lambda: resnet50(CLASSES), lambda: _few_blocks(Bottleneck(3, 4, 2), Bottleneck(16, 4, 1)), 64, 224, torch.channels_last)
MOBILENET_V2 = Net(
    lambda: mobilenet_v2(CLASSES),
    lambda: _few_blocks(InvertedResidual(3, 16, 2, 4), InvertedResidual(16, 16, 1, 4)),
    96,
    224,
    torch.channels_last,
)
VIT = Net(lambda: ViT(CLASSES, depth=12, width=384, heads=6, side=64), lambda: ViT(CLASSES, depth=1, side=16), 128, 64)

CASES = (
    _case("resnet50", "ResNet-50, channels-last,", RESNET50, 1.25),
    _case("mobilenet_v2", "MobileNetV2, channels-last,", MOBILENET_V2, 1.35),
    _case("vit", "ViT of 12 layers, width 384,", VIT, 1.10),
)
