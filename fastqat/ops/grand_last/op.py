"""The operator ``fastqat::grand_last``: schema, backend pick, fake kernel. It has no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _backend
from .._layout import rows
from .._library import define_op, define_vmap
from . import reference
from .launch import Triton

OP = "grand_last"


class Native:
    """The C++ kernel behind ``fastqat._C``, for CPU tensors, and that behind ``fastqat._C_cuda``, for CUDA tensors."""

    refuses = staticmethod(_backend.refuses_float64)

    @staticmethod
    def forward(logits: Tensor, targets: Tensor, features: Tensor, bias: bool) -> Tensor:
        norm = reference.allocate(logits, features)
        torch.ops.fastqat_native.grand_last(rows(logits), targets.contiguous(), rows(features), norm, bias)
        return norm


_backend.register(OP, "reference", reference)
_backend.register(OP, "cpu", Native)
_backend.register(OP, "triton", Triton)
_backend.register(OP, "cuda", Native)


def _forward(logits: Tensor, targets: Tensor, features: Tensor, bias: bool) -> Tensor:
    return _backend.pick(OP, logits, features).forward(logits, targets, features, bias)


def _forward_fake(logits: Tensor, targets: Tensor, features: Tensor, bias: bool) -> Tensor:
    return reference.allocate(logits, features)


grand_last = define_op("grand_last(Tensor logits, Tensor targets, Tensor features, bool bias) -> Tensor", _forward, _forward_fake)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """The rows of all samples of the batch in one call."""
    *tensors, bias = args
    size = info.batch_size
    batches = (t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims, strict=False))
    return grand_last(*(t.flatten(0, 1) for t in batches), bias).unflatten(0, (size, -1)), 0


define_vmap(grand_last, _vmap)
