"""The launches of the Triton backend for scores of logits, the last layer's norm and layers with an affine part, for the static report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from fastqat import _backend
from fastqat.ops.affine_grad_norm.reference import Statistics

from .static_launches import DTYPES, Launch, recorded, short, variant
from .static_triton import Variant

SAMPLES = 1024


def matrix(columns: int, dtype: torch.dtype) -> Tensor:
    """Rows on the meta device."""
    return torch.empty(SAMPLES, columns, dtype=dtype, device="meta")


def reading(launch: Launch, name: str, pointers: tuple[str, ...], bits: int) -> Variant:
    """A launch of which only the loads through `pointers` are judged."""
    read = {key: launch.given[key].element_size() for key in pointers if launch.given.get(key) is not None}
    return replace(variant(launch, name), tensors=read, bits=bits, written=False)


def row_bits(columns: int, dtype: torch.dtype) -> int:
    """The widest access that begins on a boundary in every row."""
    return min(128, 8 * dtype.itemsize * (columns & -columns))


def logit_scores() -> Iterator[Variant]:
    """With a teacher: rows of few, of many and of very many classes; with soft targets as well."""
    from fastqat.ops.logit_scores import kernels

    backend = _backend._implementations["logit_scores"]["triton"]
    targets = torch.empty(SAMPLES, dtype=torch.int64, device="meta")
    for (classes, soft), dtype in [*product([(1000, False), (32_000, False)], DTYPES), *product([(10, False), (1000, True)], DTYPES[:1])]:
        logits = matrix(classes, dtype)
        with recorded(kernels) as launches:
            backend.forward(logits, logits if soft else targets, logits)
        (launch,) = launches
        name = ", ".join([f"{classes} classes", short(dtype), *(["soft targets"] if soft else [])])
        found = reading(launch, name, ("logits_ptr", "teacher_ptr", "soft_ptr"), row_bits(classes, dtype))
        yield replace(found, branches=True)


def grand_last() -> Iterator[Variant]:
    """The last layers of small networks, few of whose logits fall to a thread, and of large ones."""
    from fastqat.ops.grand_last import kernels

    backend = _backend._implementations["grand_last"]["triton"]
    targets = torch.empty(SAMPLES, dtype=torch.int64, device="meta")
    for (classes, width), dtype in product([(10, 512), (1000, 2048)], DTYPES):
        with recorded(kernels) as launches:
            backend.forward(matrix(classes, dtype), targets, matrix(width, dtype), True)
        (launch,) = launches
        pointers = ("features_ptr", "logits_ptr")[: 1 if classes < 128 else 2]
        yield reading(launch, f"{classes} classes, {width} features, {short(dtype)}", pointers, 128)


@dataclass(frozen=True)
class Affine:
    """A layer with an affine part: x ``[N, C, T]``, whose channels or positions are neighbours."""

    statistics: Statistics
    channels: int
    positions: int
    channels_inner: bool = True

    def x(self, dtype: torch.dtype) -> Tensor:
        sizes = (SAMPLES, self.positions, self.channels) if self.channels_inner else (SAMPLES, self.channels, self.positions)
        x = torch.empty(sizes, dtype=dtype, device="meta")
        return x.transpose(1, 2) if self.channels_inner else x


def given(channels: int) -> Statistics:
    """Those of a batch norm that is evaluated."""
    return Statistics("given", *(torch.empty(channels, device="meta") for _ in range(2)), eps=1e-5)


AFFINE = {
    "batch norm": Affine(given(256), 256, 784),
    "batch norm, contiguous": Affine(given(256), 256, 784, channels_inner=False),
    "group norm": Affine(Statistics("group", groups=32, eps=1e-5), 256, 784, channels_inner=False),
    "layer norm": Affine(Statistics("position", eps=1e-5), 768, 256),
    "RMS norm": Affine(Statistics("rms", eps=1e-5), 8192, 256),
}


def affine_layers() -> Iterator[Variant]:
    """Norms of every kind of statistics."""
    from fastqat.ops.affine_grad_norm import kernels

    backend = _backend._implementations["affine_grad_norm"]["triton"]
    for (name, layer), dtype in product(AFFINE.items(), DTYPES):
        x = layer.x(dtype)
        with recorded(kernels) as launches:
            backend.sq_norm(x, x, layer.statistics, True, True)
        for launch in launches:
            yield reading(launch, f"{name}, {short(dtype)}", ("x_ptr", "grad_y_ptr"), 128)
