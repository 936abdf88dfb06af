"""Cases of a whole training step: ResNet-18 at 32², batch 32, W4A4, against the float step and against eager LSQ."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat.nn import calibrate, quantize
from fastqat.testing import eager_lsq_copy
from fastqat.train.models import make_model

from .case import Case, Contender, Goal, Results, Size, Work
from .resnet import resnet18


@dataclass(frozen=True)
class Inputs:
    """A float model in training mode and one batch."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def quantized(self) -> nn.Module:
        """The model at W4A4, calibrated on the batch."""
        return calibrate(quantize(self.model, "w4a4"), [self.x]).train()


def batch_of(layout: torch.memory_format) -> Callable[[Size], Inputs]:
    """A set-up: the model and its batch in a memory layout. Small: ResNet-8, 4 pictures of 16², fp64, where no rounding flips a code."""

    def setup(size: Size) -> Inputs:
        torch.manual_seed(0)
        samples, side, dtype = (4, 16, torch.float64) if size == "small" else (32, 32, torch.float32)
        model = make_model("resnet8", 10, (3, 32, 32)) if size == "small" else resnet18(10)
        x = torch.randn(samples, 3, side, side).to(dtype, memory_format=layout)
        return Inputs(model.to(dtype=dtype, memory_format=layout), x, torch.arange(samples) % 10)

    return setup


def step_of(build: Callable[[Inputs], nn.Module]) -> Callable[[Inputs], Work]:
    """Forward, cross-entropy, backward and an SGD step with momentum, on the model that `build` makes.

    Its results are the loss and the momentum of the first convolution: after one step, a gradient that came through every layer.
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


def _case(variant: str, about: str, layout: torch.memory_format, quick: bool) -> Case:
    return Case(
        f"step/{variant}",
        f"training step, ResNet-18 at 32², batch 32, W4A4, {about}",
        batch_of(layout),
        Contender("fastqat", step_of(Inputs.quantized)),
        (
            Contender("float", step_of(lambda inputs: copy.deepcopy(inputs.model)), agrees=()),
            Contender("eager LSQ", step_of(lambda inputs: eager_lsq_copy(inputs.quantized()))),
        ),
        goals=(Goal("float", 1.08), Goal("float", 1.07, "memory")),
        quick=quick,
    )


CASES = (
    _case("contiguous", "contiguous", torch.contiguous_format, quick=True),
    _case("channels_last", "channels-last", torch.channels_last, quick=False),
)
