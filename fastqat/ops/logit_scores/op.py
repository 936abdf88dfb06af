"""The operator ``fastqat::logit_scores``: schema, backend pick, fake kernel. It has no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _backend
from ..._errors import InputError
from .._library import define_op, define_vmap
from . import reference

OP = "logit_scores"


class Native:
    """The C++ kernel behind ``fastqat._C``, for CPU tensors."""

    refuses = staticmethod(_backend.refuses_float64)

    @staticmethod
    def forward(logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None) -> tuple[list[Tensor], int]:
        out = reference.allocate(logits, targets, teacher_logits)
        bad = torch.empty(1, dtype=torch.int64)
        teacher_logits = None if teacher_logits is None else _contiguous_classes(teacher_logits)
        torch.ops.fastqat_native.logit_scores(
            _contiguous_classes(logits),
            None if targets is None else targets.contiguous(),
            teacher_logits,
            *(out.get(name) for name in reference.field_names(True, True)),
            bad,
        )
        return list(out.values()), int(bad)


def _contiguous_classes(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


_backend.register(OP, "reference", reference)
_backend.register(OP, "cpu", Native)


def _forward(logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None) -> list[Tensor]:
    given = (logits,) if teacher_logits is None else (logits, teacher_logits)
    scores, bad = _backend.pick(OP, *given).forward(logits, targets, teacher_logits)
    if targets is not None and bad < logits.shape[0]:
        raise InputError(
            f"targets[{bad}] is {int(targets[bad])}; accepted: class indices from 0 to {logits.shape[1] - 1}, one per column of logits"
        )
    return scores


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
