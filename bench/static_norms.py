"""The launches of the Triton backend of gradient norms for layers of real networks, for the static report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from fastqat import _backend
from fastqat.ops.grad_norm.geometry import LINEAR, Geometry

from .static_launches import DTYPES, Launch, recorded, short, variant
from .static_triton import Variant

ONE, NONE = (1, 1, 1), (0, 0, 0)


@dataclass(frozen=True)
class Layer:
    """A layer and the sizes of its input; `vectors`: neighbours in memory are read 128 bits at a time."""

    outputs: int
    sizes: tuple[int, ...]  # N, C, D, H, W
    geometry: Geometry
    channels_last: bool = True
    vectors: bool = True

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x and grad_y on the meta device."""
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        shapes = self.sizes, (self.sizes[0], self.outputs, *self.geometry.output_size(self.sizes[2:]))
        x, grad_y = (torch.empty(shape, dtype=dtype, device="meta", memory_format=layout) for shape in shapes)
        return x, grad_y

    def weights(self) -> Tensor:
        """Like a mask or a slope."""
        return torch.empty(self.outputs, self.sizes[1] // self.geometry.groups, *self.geometry.kernel, device="meta")


def square(groups: int, kernel: int, stride: int, padding: int) -> Geometry:
    """A two-dimensional convolution."""
    return Geometry(groups, (1, kernel, kernel), (1, stride, stride), (0, padding, padding), ONE)


LAYERS = {
    "linear": Layer(3072, (64, 768, 1, 1, 256), LINEAR),
    "3 × 3": Layer(128, (64, 128, 1, 28, 28), square(1, 3, 1, 1)),
    "3 × 3, contiguous": Layer(128, (64, 128, 1, 28, 28), square(1, 3, 1, 1), channels_last=False, vectors=False),
    "1 × 1, contiguous": Layer(128, (64, 512, 1, 28, 28), square(1, 1, 1, 0), channels_last=False),
    "1 × 1, stride 2": Layer(512, (64, 256, 1, 56, 56), square(1, 1, 2, 0)),
    "7 × 7": Layer(64, (64, 3, 1, 224, 224), square(1, 7, 2, 3), vectors=False),
    "depthwise": Layer(96, (64, 96, 1, 56, 56), square(96, 3, 1, 1)),
    "depthwise, contiguous": Layer(96, (64, 96, 1, 56, 56), square(96, 3, 1, 1), channels_last=False, vectors=False),
    "32 groups of 4": Layer(128, (64, 128, 1, 56, 56), square(32, 3, 1, 1), vectors=False),
}
ROWS = Layer(1024, (256, 2048, 1, 1, 1), LINEAR)


def gradient_norms() -> Iterator[Variant]:
    """Every layer in fp32 and bf16, plain with a bias, and with mask and slope; the Gram form where there are few positions.

    What compiles to the same as an earlier launch is left out: most second stages.
    """
    seen = set()
    for (name, layer), dtype in product([*LAYERS.items(), ("one position", ROWS)], DTYPES):
        for launch in _launches(layer, dtype):
            what = [name, short(dtype), *(["mask and slope"] if launch.given.get("mask_ptr") is not None else [])]
            read = {key: dtype.itemsize for key in ("x_ptr", "grad_y_ptr") if key in launch.given}
            bits = 128 if layer.vectors else 8 * dtype.itemsize
            found = replace(variant(launch, ", ".join(what)), tensors=read, bits=bits, written=False)
            binary = str((launch.kernel, found.types, found.constants, sorted(map(str, found.aligned))))
            if binary not in seen:
                yield found
            seen.add(binary)


def _launches(layer: Layer, dtype: torch.dtype) -> list[Launch]:
    """What the backend launches for a layer."""
    from fastqat.ops.grad_norm import kernels

    backend = _backend._implementations["grad_norm"]["triton"]
    x, grad_y = layer.tensors(dtype)
    weights = layer.weights()
    with recorded(kernels) as launches:
        if x[0, 0].numel() > 1:
            backend.direct(x, grad_y, None, None, layer.geometry, True)
        backend.direct(x, grad_y, weights, weights, layer.geometry, False)
        if layer.geometry.groups == 1 and grad_y[0, 0].numel() < 1024:
            backend.gram(x, grad_y, None, layer.geometry, True, "gram")
    return launches
