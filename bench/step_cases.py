"""Cases of a whole training step, W4A4: fastqat against the float step and against other ways to train the same quantized network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat.nn import calibrate, quantize
from fastqat.testing import eager_lsq_copy
from fastqat.train.models import make_model

from .case import Case, Contender, Goal, Results, Size, Work, needs_compiler, needs_package, never
from .mobilenet import mobilenet_v2, short_mobilenet_v2
from .resnet import Bottleneck, ResNet, resnet18, resnet50
from .step_peers import brevitas_copy, torchao_copy
from .vit import ViT

CLASSES = 10


@dataclass(frozen=True)
class Inputs:
    """A float model in training mode and one batch."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def quantized(self) -> nn.Module:
        """The model at W4A4, calibrated on the batch."""
        return calibrate(quantize(self.model, "w4a4"), [self.x]).train()


@dataclass(frozen=True)
class Net:
    """A network and its batch; `small`: its stand-in for the tests of agreement, in fp64, where no rounding flips a code."""

    build: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    batch: int
    side: int
    layout: torch.memory_format = torch.contiguous_format

    def setup(self, size: Size) -> Inputs:
        """The model and its batch; small: 4 pictures of 16²."""
        torch.manual_seed(0)
        samples, side, dtype = (4, 16, torch.float64) if size == "small" else (self.batch, self.side, torch.float32)
        model = self.small() if size == "small" else self.build()
        x = torch.randn(samples, 3, side, side).to(dtype, memory_format=self.layout)
        model = model.to(dtype=dtype, memory_format=self.layout)
        _settle(model, x)
        return Inputs(model, x, torch.arange(samples) % CLASSES)


@torch.no_grad()
def _settle(model: nn.Module, x: Tensor) -> None:
    """Give the batch norms of a fresh model the statistics of x: with others, calibration finds ranges that training then leaves."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches seen, here one
    model.train()(x)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def step_of(build: Callable[[Inputs], nn.Module]) -> Callable[[Inputs], Work]:
    """Forward, cross-entropy, backward and an SGD step with momentum, on the model that `build` makes.

    Its results are the loss and the momentum of the first weight: after one step, a gradient that came through every layer.
    """

    def make(inputs: Inputs) -> Work:
        model = build(inputs)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        first = next(model.parameters())

        def call() -> Results:
            loss = F.cross_entropy(model(inputs.x), inputs.y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return {"loss": loss.detach(), "gradient": optimizer.state[first]["momentum_buffer"]}

        def holds() -> Iterator[Tensor]:
            yield from (inputs.x, inputs.y, *model.parameters(), *model.buffers())
            yield from (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))

        return Work(call, holds)

    return make


def _compiled(build: Callable[[Inputs], nn.Module]) -> Callable[[Inputs], Work]:
    """The step of the model compiled as a whole; the optimizer runs as everywhere else."""
    return step_of(lambda inputs: torch.compile(build(inputs), dynamic=False))


def _eager(inputs: Inputs) -> nn.Module:
    return eager_lsq_copy(inputs.quantized())


def _torchao(inputs: Inputs) -> nn.Module:
    return torchao_copy(inputs.quantized(), inputs.x)


FLOAT = Contender("float", step_of(lambda inputs: copy.deepcopy(inputs.model)), agrees=())
EAGER = Contender("eager LSQ", step_of(_eager))
# A compiled batch norm may round a value that is the mean of its channel to the other side of zero, where ReLU's gradient jumps.
COMPILED = (
    Contender("compiled LSQ", _compiled(_eager), needs_compiler, agrees=("loss",), quick=False),
    Contender("compiled fastqat", _compiled(Inputs.quantized), needs_compiler, agrees=("loss",), quick=False),
)
# Other gradients of the scales, other first scales: they do the same kind of work, not the same sums.
BREVITAS = Contender("brevitas", step_of(lambda inputs: brevitas_copy(inputs.quantized())), needs_package("brevitas"), agrees=())
TORCHAO = Contender("torchao", step_of(_torchao), needs_package("torchao"), agrees=())
NO_TORCHAO = Contender("torchao", step_of(_torchao), never("it quantizes linear layers only"), agrees=())


def _case(variant: str, about: str, net: Net, most: float | None, peers: tuple[Contender, ...], **options: Any) -> Case:
    """A case whose step may take `most` × the float step; None: without a goal."""
    goals = () if most is None else (Goal(FLOAT.name, most), Goal(FLOAT.name, 1.07, "memory"))
    return Case(
        f"step/{variant}",
        f"training step, {about} at {net.side}², batch {net.batch}, W4A4",
        net.setup,
        Contender("fastqat", step_of(Inputs.quantized)),
        (FLOAT, EAGER, *peers),
        goals=goals,
        **{"quick": False, "seconds": 20, **options},
    )


def _resnet8() -> nn.Module:
    return make_model("resnet8", CLASSES, (3, 32, 32))


RESNET18 = Net(lambda: resnet18(CLASSES), _resnet8, 32, 32)
RESNET18_CHANNELS_LAST = Net(lambda: resnet18(CLASSES), _resnet8, 32, 32, torch.channels_last)
RESNET50 = Net(lambda: resnet50(CLASSES), lambda: ResNet(Bottleneck, (1, 1, 0, 0), CLASSES), 64, 64)
MOBILENET_V2 = Net(lambda: mobilenet_v2(CLASSES), lambda: short_mobilenet_v2(CLASSES), 32, 64)
VIT = Net(lambda: ViT(CLASSES), lambda: ViT(CLASSES, depth=1, side=16), 32, 32)
FOR_PICTURES = (*COMPILED, BREVITAS, NO_TORCHAO)

CASES = (
    _case("resnet18", "ResNet-18", RESNET18, 1.06, FOR_PICTURES, quick=True),
    _case("resnet18-channels_last", "ResNet-18, channels-last,", RESNET18_CHANNELS_LAST, 1.06, ()),
    _case("resnet50", "ResNet-50", RESNET50, 1.06, FOR_PICTURES, seconds=45),
    _case("mobilenet_v2", "MobileNetV2", MOBILENET_V2, 1.15, FOR_PICTURES),
    _case("vit", "ViT of 6 layers, width 192,", VIT, None, (*COMPILED, BREVITAS, TORCHAO)),
)
