"""The operator ``fastqat::logit_scores``: schema, backend pick, fake kernel. It has no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _backend
from ..._errors import InputError
from .._layout import rows
from .._library import define_op, define_vmap
from . import reference
from .launch import Triton

OP = "logit_scores"


class Native:
    """The C++ kernel behind ``fastqat._C``, for CPU tensors, and that behind ``fastqat._C_cuda``, for CUDA tensors."""

    refuses = staticmethod(_backend.refuses_float64)

    @staticmethod
    def forward(logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None) -> list[Tensor]:
        out = reference.allocate(logits, targets, teacher_logits)
        torch.ops.fastqat_native.logit_scores(
            rows(logits),
            None if targets is None else rows(targets) if targets.is_floating_point() else targets.contiguous(),
            None if teacher_logits is None else rows(teacher_logits),
            *(out.get(name) for name in reference.field_names(True, True)),
        )
        return list(out.values())


_backend.register(OP, "reference", reference)
_backend.register(OP, "cpu", Native)
_backend.register(OP, "triton", Triton)
_backend.register(OP, "cuda", Native)


def _check_classes(targets: Tensor, classes: int) -> None:
    """Raise for the first class index that is none. On the CPU only: another device would have to be waited for."""
    if targets.numel() == 0 or targets.is_floating_point() or targets.device.type != "cpu":
        return
    low, high = torch.aminmax(targets)
    if int(low) < 0 or int(high) >= classes:
        bad = int(((targets < 0) | (targets >= classes)).to(torch.uint8).argmax())
        raise InputError(
            f"targets[{bad}] is {int(targets[bad])}; accepted: class indices from 0 to {classes - 1}, one per column of logits"
        )


def _forward(logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None) -> list[Tensor]:
    """Every backend gives a row whose target is no class NaN and ``correct = False``."""
    if targets is not None:
        _check_classes(targets, logits.shape[1])
    given = [t for t in (logits, targets, teacher_logits) if t is not None and t.is_floating_point()]
    return _backend.pick(OP, *given).forward(logits, targets, teacher_logits)


def _forward_fake(logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None) -> list[Tensor]:
    return list(reference.allocate(logits, targets, teacher_logits).values())


logit_scores = define_op("logit_scores(Tensor logits, Tensor? targets, Tensor? teacher_logits) -> Tensor[]", _forward, _forward_fake)


def _vmap(
    info: Any, in_dims: tuple[int | None, ...], logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None
) -> tuple[list[Tensor], list[int]]:
    """The rows of all samples of the batch in one call."""
    size = info.batch_size
    given = (logits, targets, teacher_logits)
    batches = (
        None if t is None else t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(given, in_dims, strict=True)
    )
    found = logit_scores(*(None if t is None else t.flatten(0, 1) for t in batches))
    return [values.unflatten(0, (size, -1)) for values in found], [0] * len(found)


define_vmap(logit_scores, _vmap)
