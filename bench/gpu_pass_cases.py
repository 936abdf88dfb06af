"""Cases of per-sample gradient norms of whole networks on a GPU under bfloat16 autocast, and of the last layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .case import Contender, Size
from .gpu_step_cases import DEVICE, Autocast
from .norm_cases import CLASSES, MOBILENET_V2, RESNET18, Inputs, Net, last_case, others_for, pass_case, quant_case, quantized
from .norm_nets import InceptionTime, vit

NETS = {
    "resnet18": (replace(RESNET18, shape=(512, 3, 32, 32)), "ResNet-18 with group norm at 32², batch 512"),
    "mobilenet_v2": (replace(MOBILENET_V2, shape=(96, 3, 224, 224)), "MobileNetV2 with group norm at 224², batch 96"),
    "vit": (
        Net(lambda: vit(CLASSES, depth=12, width=384, heads=6, side=64), lambda: vit(CLASSES, depth=1, side=16), (128, 3, 64, 64)),
        "ViT of 12 layers, width 384, fixed positions, at 64², batch 128",
    ),
    "cnn1d": (
        Net(lambda: InceptionTime(CLASSES), lambda: InceptionTime(CLASSES, depth=3), (1024, 9, 128)),
        "InceptionTime with group norm on 9 × 128, batch 1024",
    ),
}


def _on_device(net: Net) -> Callable[[Size], Inputs]:
    """The float network under autocast; in fp64, which autocast leaves alone, in the tests of agreement."""
    return lambda size: replace(net.setup(size, torch.float64 if size == "small" else torch.float32, DEVICE), around=Autocast)


def _quantized(net: Net) -> Callable[[Size], Inputs]:
    return lambda size: quantized(_on_device(net)(size))


def _others(name: str) -> tuple[Contender, ...]:
    """The peers; in a quick run fastqat meets the plain step only, since some of them take long or run out of memory."""
    return tuple(replace(other, quick=False) for other in others_for(name))


OPTIONS: dict[str, Any] = {"device": "cuda", "clock": "stream", "seconds": 15}

CASES = (
    *(
        pass_case(f"gpu/norms/pass-{name}", f"{about}, bf16 autocast", _on_device(net), _others(name), **OPTIONS)
        for name, (net, about) in NETS.items()
    ),
    *(quant_case(f"gpu/norms/quant-{name}", f"{about}, bf16 autocast", _quantized(net), **OPTIONS) for name, (net, about) in NETS.items()),
    last_case("gpu/norms/grand_last-10", 1 << 20, 10, 512, torch.float32, DEVICE, device="cuda"),
    last_case("gpu/norms/grand_last-1000", 1 << 17, 1000, 2048, torch.bfloat16, DEVICE, device="cuda"),
)
