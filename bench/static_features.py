"""The launches of the Triton backend for the divergence of feature maps, for the static report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from fastqat import _backend

from .case import LAYOUTS
from .static_launches import DTYPES, Launch, recorded, short, variant
from .static_triton import Variant

# Maps of residual networks: rows that fit a tile, rows of several parts, rows that begin on no vector boundary.
CASES = (
    *product(("spatial",), ((64, 256, 56, 56),), LAYOUTS, DTYPES),
    *product(("channel", "flat"), ((64, 256, 56, 56),), LAYOUTS, DTYPES[:1]),
    *(("spatial", (64, *rest), "contiguous", DTYPES[0]) for rest in ((64, 112, 112), (2048, 7, 7))),
    ("spatial", (64, 1024, 14, 14), "channels-last", DTYPES[0]),
)
MAPS = ("student_ptr", "teacher_ptr", "grad_x_ptr")


def feature_kl() -> Iterator[Variant]:
    """Forward and backward of every distribution, contiguous and channels-last."""
    from fastqat.ops.feature_kl import kernels

    backend = _backend._implementations["feature_kl"]["triton"]
    for distribution, sizes, layout, dtype in CASES:
        x = torch.empty(sizes, dtype=dtype, device="meta", memory_format=LAYOUTS[layout])
        with recorded(kernels) as launches:
            found = backend.forward(x, x, distribution)
            if distribution != "channel":
                backend.backward(found.row, x, x, *found, distribution)
        for launch in launches:
            yield judged(launch, x, f"{distribution}, {list(sizes)}, {layout}, {short(dtype)}")


def judged(launch: Launch, x: Tensor, name: str) -> Variant:
    """A launch whose accesses to maps of the size of `x` are as wide as the boundaries of rows allow."""
    found = variant(launch, name)
    given = {key: launch.given.get(key) for key in MAPS}
    tensors = {key: t.element_size() for key, t in given.items() if t is not None and t.numel() == x.numel()}
    if not tensors:
        return found
    bits = min(128, 8 * x.dtype.itemsize * launch.given["UNIT"])
    return replace(found, tensors=tensors, bits=bits, written="grad_x_ptr" in tensors)
