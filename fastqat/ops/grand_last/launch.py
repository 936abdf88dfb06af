"""The Triton backend of the last layer's gradient norm: allocates, cuts, launches. Triton itself is imported with the first launch."""

from __future__ import annotations

from torch import Tensor

from ... import _backend
from .._launch import on_device
from .._layout import rows
from ..logit_scores.launch import unit
from . import reference

ELEMENTS = 2048  # of the tile that a program of four warps reads at a time: four 128-bit accesses per thread in fp32
MOST_ROWS = 8


def tile(length: int) -> tuple[int, int]:
    """Rows and columns of a tile for rows of `length` elements: powers of two, as wide as a row, then as high as there is room."""
    columns = min(ELEMENTS, 1 << max(4, (length - 1).bit_length()))
    return min(MOST_ROWS, ELEMENTS // columns), columns


class Triton:
    """One launch; rows may be strided, logits and features of different types."""

    refuses = staticmethod(_backend.refuses_float64)

    @staticmethod
    def forward(logits: Tensor, targets: Tensor, features: Tensor, bias: bool) -> Tensor:
        from ..._triton import NO_FUSION  # here, since importing triton takes as long as all of fastqat
        from .kernels import grand_last_kernel

        norm = reference.allocate(logits, features)
        if norm.numel() == 0:
            return norm
        logits, features = rows(logits), rows(features)
        samples, classes, width = *logits.shape, features.shape[1]
        height, columns = tile(max(classes, width))
        step = unit([logits, features])
        with on_device(logits.device):
            grand_last_kernel[(-(-samples // height),)](
                logits,
                targets.contiguous(),
                features,
                norm,
                samples,
                classes // step,
                width // step,
                logits.stride(0) // step,
                features.stride(0) // step,
                UNIT=step,
                BIAS=bias,
                ROWS=height,
                CLASSES=min(columns, tile(classes)[1]),
                WIDTH=min(columns, tile(width)[1]),
                **NO_FUSION,
            )
        return norm
