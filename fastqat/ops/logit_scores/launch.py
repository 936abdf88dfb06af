"""The Triton backend of the logit scores: cuts, allocates, launches. Triton itself is imported with the first launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _backend
from .._launch import on_device
from .._layout import rows
from . import reference
from .fields import LogitScores

WHOLE = 4096  # classes of the longest row that is held in registers
PER_WARP = 1024  # elements of student and teacher each: 32 per thread
LANES = 2048  # of a long row: one 128-bit access per thread and step
# The maths gains from fused multiply-adds and survives them: what must cancel exactly has no products.
FUSION = {"enable_fp_fusion": True}


def unit(matrices: list[Tensor]) -> int:
    """Elements, at most 8, of which all row strides and the length of the rows are multiples."""
    count = 8
    while any(x.stride(0) % count or x.shape[1] % count for x in matrices):
        count //= 2
    return count


def tile(classes: int, vector: int) -> dict[str, int]:
    """The compile-time sizes of a kernel for rows of `classes` elements, `vector` of which are 16 bytes, and its number of warps."""
    if classes > WHOLE:
        return {"STEPS": 4 if classes > 4 * WHOLE else 2, "LANES": LANES, "PART": LANES, "num_warps": LANES // (32 * vector)}
    columns = max(16, 1 << (classes - 1).bit_length())
    if columns >= PER_WARP:
        return {"ROWS": 1, "COLUMNS": columns, "PART": columns // 4, "num_warps": columns // PER_WARP}
    return {"ROWS": min(16, 128 * vector // columns), "COLUMNS": columns, "PART": columns, "num_warps": 4}


class Triton:
    """One launch; rows may be strided, and every matrix has its own type."""

    refuses = staticmethod(_backend.refuses_float64)

    @staticmethod
    def forward(logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None) -> list[Tensor]:
        from . import kernels  # here, since importing triton takes as long as all of fastqat

        out = reference.allocate(logits, targets, teacher_logits)
        samples, classes = logits.shape
        if samples == 0:
            return list(out.values())
        soft = targets is not None and targets.is_floating_point()
        matrices = [None if x is None else rows(x) for x in (logits, teacher_logits, targets if soft else None)]
        given = [x for x in matrices if x is not None]
        step, sizes = unit(given), tile(classes, 16 // min(x.element_size() for x in given))
        kernel: Any = kernels.score_long_rows_kernel if classes > WHOLE else kernels.score_rows_kernel
        with on_device(logits.device):
            kernel[(-(-samples // sizes.get("ROWS", 1)),)](
                *matrices,
                None if targets is None or soft else targets.contiguous(),
                LogitScores(**{name: x.view(torch.uint8) if x.dtype == torch.bool else x for name, x in out.items()}),
                samples,
                classes // step,
                *(0 if x is None else x.stride(0) // step for x in matrices),
                UNIT=step,
                **sizes,
                **FUSION,
            )
        return list(out.values())
