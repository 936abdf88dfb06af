"""Cases of per-sample gradient norms of single layers on a GPU: the direct form against the layer's ordinary weight gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fastqat import backends, use_backend

from . import norm_layer_cases as layers
from .case import Case, Contender, Goal, Results, Size, Work
from .norm_layer_cases import Layer, Shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DEPTHWISE = Shape(144, 144, 56, 3, groups=144)  # of MobileNetV2
LINEAR = Shape(768, 3072, 14, 1)  # 196 positions, as in a ViT
SQUARE = Shape(128, 128, 28, 3)


def _setup(shape: Shape, dtype: str, layout: str) -> Callable[[Size], Layer]:
    def build(size: Size) -> Layer:
        layer = layers.setup(shape, size)
        moved = (t.to(DEVICE, DTYPES[dtype]).to(memory_format=LAYOUTS[layout]) for t in (layer.x, layer.grad_y, layer.weight))
        return Layer(shape, *moved)

    return build


def _weight_gradient(layer: Layer) -> Work:
    """torch's, as fast as cuDNN can and in the precision of the norms: fp32 is not rounded to TF32."""
    work = layers.weight_gradient(layer)

    def call() -> Results:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            return work.call()

    return Work(call)


def _cuda_backend(layer: Layer) -> Work:
    """The kernels that take over where Triton is absent."""
    work = layers.norms("direct").make(layer)

    def call() -> Results:
        with use_backend("cuda"):
            return work.call()

    return Work(call)


CUDA = Contender("cuda backend", _cuda_backend, lambda: backends()["cuda"]["grad_norm"])


def _case(shape: Shape, dtype: str, layout: str) -> Case:
    case = layers.case(shape)
    peers = (Contender("weight gradient", _weight_gradient, agrees=()), layers.norms("auto"), CUDA)
    return replace(
        case,
        name=f"gpu/{case.name}-{dtype}-{layout}",
        about=f"{case.about}, on a GPU, {dtype}, {layout.replace('_', '-')}",
        setup=_setup(shape, dtype, layout),
        peers=peers,
        goals=(Goal("weight gradient", 1.43),),
        quick=shape in (LINEAR, DEPTHWISE, SQUARE),
        seconds=0.5,
        device="cuda",
        clock="stream",
    )


CASES = (
    *(_case(shape, "bf16", "channels_last") for shape in (*layers.SHAPES, DEPTHWISE, LINEAR)),
    *(_case(shape, "fp32", "channels_last") for shape in (SQUARE, DEPTHWISE, LINEAR)),
    *(_case(SQUARE, dtype, "contiguous") for dtype in DTYPES),
)
