"""Cases of per-sample gradient norms: a pass over whole networks, float and quantized, and the last layer in closed form."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastqat.nn import calibrate, quantize
from fastqat.norms import per_sample_grad_norms
from fastqat.ops.grand_last.api import grand_last
from fastqat.ops.grand_last.reference import eager_grand_last

from . import norm_peers as peers
from .case import Case, Contender, Goal, Results, Size, Work, needs_package
from .norm_nets import InceptionTime, mobilenet_v2, resnet18, small_mobilenet_v2, vit
from .rows import COPY

CLASSES = 10
PLAIN = "forward + backward"


@dataclass(frozen=True)
class Inputs:
    """A model whose results do not depend on its mode, and one batch; `around` wraps what is run (autocast)."""

    model: nn.Module
    x: Tensor
    y: Tensor
    around: Callable[[nn.Module], nn.Module] = lambda model: model

    def held(self, model: nn.Module) -> Iterator[Tensor]:
        """What stays allocated between calls."""
        yield from (self.x, self.y, *model.parameters(), *model.buffers())


@dataclass(frozen=True)
class Net:
    """A network and the shape of its batch; `small`: its stand-in for the tests of agreement, on pictures of 16² or series of 32."""

    build: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def setup(self, size: Size, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
        """The model and its batch; small: four samples."""
        torch.manual_seed(0)
        shape = (4, self.shape[1], *(16 if len(self.shape) == 4 else 32 for _ in self.shape[2:])) if size == "small" else self.shape
        model = (self.small if size == "small" else self.build)()
        x, y = torch.randn(shape), torch.arange(shape[0]) % CLASSES
        return Inputs(model.to(device, dtype), x.to(device, dtype), y.to(device))

    def quantized(self, size: Size) -> Inputs:
        """The model at W4A4 in eval mode, and its batch; in fp64 when small, where no rounding flips a code of one contender only."""
        return quantized(self.setup(size, torch.float64 if size == "small" else torch.float32))


def quantized(inputs: Inputs) -> Inputs:
    """The model at W4A4, calibrated on the batch, in eval mode."""
    return replace(inputs, model=calibrate(quantize(inputs.model, "w4a4"), [inputs.x]).eval())


def scoring_pass(inputs: Inputs) -> Work:
    """fastqat's pass with all parameters frozen."""
    model = copy.deepcopy(inputs.model).requires_grad_(False)
    run = inputs.around(model)

    def call() -> Results:
        with per_sample_grad_norms(model, loss_reduction="sum") as norms:
            peers.summed_loss(run(inputs.x), inputs.y).backward()
        return {"sq_norm": norms.sq_total}

    return Work(call, lambda: inputs.held(model))


def plain_step(inputs: Inputs) -> Work:
    """Forward and backward of the same network with weight gradients, and no norms."""
    model = copy.deepcopy(inputs.model)
    step = peers.plain_step(inputs.around(model), inputs.x, inputs.y)

    def call() -> Results:
        step()
        return {}

    return Work(call, lambda: inputs.held(model))


def peer(find: Callable[[nn.Module, Tensor, Tensor], peers.Pass]) -> Callable[[Inputs], Work]:
    """The work of a pass of `norm_peers`."""

    def make(inputs: Inputs) -> Work:
        model = copy.deepcopy(inputs.model)
        norms = find(inputs.around(model), inputs.x, inputs.y)

        def call() -> Results:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of hooks on functions, of slow batching rules
                return {"sq_norm": norms().detach()}

        return Work(call, lambda: inputs.held(model))

    return make


STEP = Contender(PLAIN, plain_step, agrees=())
OTHERS = (
    Contender("opacus", peer(peers.opacus_hooks), needs_package("opacus")),
    Contender("opacus ghost", peer(peers.opacus_ghost), needs_package("opacus")),
    Contender("backpack", peer(peers.backpack_l2), needs_package("backpack")),
    Contender("torch.func", peer(peers.torch_func)),
)
LOOP = Contender("one by one", peer(peers.one_by_one), quick=False)
# It does not keep the groups of a convolution apart: its norms of depthwise layers are those of a dense gradient.
WRONG_IN_GROUPS = tuple(replace(other, agrees=()) if other.name == "backpack" else other for other in OTHERS)


def pass_case(name: str, about: str, setup: Callable[[Size], Inputs], others: tuple[Contender, ...], **options: Any) -> Case:
    """A float network; ahead of each peer in time and memory, by half as much again in time."""
    ahead = (goal for other in others if other is not LOOP for goal in (Goal(other.name, 1 / 1.5), Goal(other.name, 1.0, "memory")))
    return Case(
        name,
        f"norms of all layers, {about}, parameters frozen",
        setup,
        Contender("fastqat", scoring_pass),
        (STEP, *others),
        goals=(Goal(PLAIN, 1.15), Goal(PLAIN, 1.10, "memory"), *ahead),
        **{"quick": False, "seconds": 45, "tolerance": 1e-4, **options},
    )


def quant_case(name: str, about: str, setup: Callable[[Size], Inputs], others: tuple[Contender, ...] = (), **options: Any) -> Case:
    """The same network at W4A4, against its own plain step; no other package knows the norms of quantized layers."""
    return Case(
        name,
        f"norms of all layers and step sizes, {about}, W4A4, parameters frozen",
        setup,
        Contender("fastqat", scoring_pass),
        (STEP, *others),
        goals=(Goal(PLAIN, 1.3), Goal(PLAIN, 1.10, "memory")),
        **{"quick": False, "seconds": 30, "tolerance": 1e-4, **options},
    )


RESNET18 = Net(lambda: resnet18(CLASSES), lambda: resnet18(CLASSES, (16, 32), 1), (32, 3, 32, 32))
MOBILENET_V2 = Net(lambda: mobilenet_v2(CLASSES), lambda: small_mobilenet_v2(CLASSES), (32, 3, 64, 64))
VIT = Net(lambda: vit(CLASSES), lambda: vit(CLASSES, depth=1, side=16), (32, 3, 32, 32))
CNN1D = Net(lambda: InceptionTime(CLASSES), lambda: InceptionTime(CLASSES, depth=3), (64, 9, 128))


@dataclass(frozen=True)
class LastLayer:
    """Logits [samples, classes], features [samples, width] and labels."""

    logits: Tensor
    features: Tensor
    targets: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that must be read and written once: all numbers, a label and a norm per sample."""
        return self.logits.nbytes + self.features.nbytes + self.targets.nbytes + 4 * len(self.targets)


def last_layer(samples: int, classes: int, width: int, dtype: torch.dtype, device: str = "cpu") -> Callable[[Size], LastLayer]:
    """Inputs of `grand_last`; a hundredth of the samples in the tests of agreement."""

    def setup(size: Size) -> LastLayer:
        torch.manual_seed(0)
        n = max(1, samples // 100) if size == "small" else samples
        logits, features = torch.randn(n, classes).mul_(3), torch.randn(n, width)
        return LastLayer(*(t.to(device, dtype) for t in (logits, features)), torch.randint(classes, (n,)).to(device))

    return setup


def _closed_form(inputs: LastLayer) -> Work:
    return Work(lambda: {"norm": grand_last(inputs.logits, inputs.targets, inputs.features)})


def _eager(inputs: LastLayer) -> Work:
    return Work(lambda: {"norm": eager_grand_last(inputs.logits, inputs.targets, inputs.features)})


def _copy(inputs: LastLayer) -> Work:
    both = torch.empty(inputs.nbytes // 4, device=inputs.logits.device)
    return Work(lambda: {"copy": both.clone()}, moved=2 * both.nbytes)


def last_case(name: str, samples: int, classes: int, width: int, dtype: torch.dtype, place: str = "cpu", **options: Any) -> Case:
    """The last layer's norms from logits and features."""
    return Case(
        name,
        f"norms of the last layer, logits [{samples}, {classes}], features [{samples}, {width}], {str(dtype).removeprefix('torch.')}",
        last_layer(samples, classes, width, dtype, place),
        Contender("fastqat", _closed_form),
        (Contender(COPY, _copy, agrees=()), Contender("eager formulas", _eager)),
        moved=lambda inputs: inputs.nbytes,
        goals=(Goal(COPY, 0.75, "share"),),
        **{"seconds": 4, "tolerance": 1e-5 if dtype == torch.float32 else 2e-2, **options},
    )


NETS = {
    "resnet18": (RESNET18, "ResNet-18 with group norm at 32², batch 32"),
    "mobilenet_v2": (MOBILENET_V2, "MobileNetV2 with group norm at 64², batch 32"),
    "vit": (VIT, "ViT of 6 layers, width 192, fixed positions, at 32², batch 32"),
    "cnn1d": (CNN1D, "InceptionTime with group norm on 9 × 128, batch 64"),
}
DEPTHWISE = ("mobilenet_v2",)


def others_for(name: str) -> tuple[Contender, ...]:
    """The peers, with those that are wrong for this network not asked to agree."""
    return WRONG_IN_GROUPS if name in DEPTHWISE else OTHERS


CASES = (
    *(
        pass_case(f"norms/pass-{name}", about, net.setup, (*others_for(name), LOOP), quick=name == "resnet18")
        for name, (net, about) in NETS.items()
    ),
    *(quant_case(f"norms/quant-{name}", about, net.quantized, (LOOP,)) for name, (net, about) in NETS.items()),
    last_case("norms/grand_last-10", 16384, 10, 512, torch.float32),
    last_case("norms/grand_last-1000", 4096, 1000, 2048, torch.float32),
    last_case("norms/grand_last-10-bf16", 65536, 10, 512, torch.bfloat16),
)
