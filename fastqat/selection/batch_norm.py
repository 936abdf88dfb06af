"""Batch-norm statistics of the whole data, after training on a selected part of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastqat._errors import InputError
from fastqat.selection.forwards import Forward, device_of, evaluation_mode


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> int:
    """Replace the running statistics of every batch norm by the plain average over `batches`; returns the number of samples read.

    Unlike `torch.optim.swa_utils.update_bn` only the batch norms leave eval mode (dropout and quantizers stay as at test time), and an
    error puts the old statistics back.

    Args:
        model: changed in place: ``running_mean``, ``running_var``, ``num_batches_tracked``.
        batches: tensors ``[B, ...]`` on any device; not read when the model has no batch norm.
        forward: ``forward(model, x)`` in place of ``model(x)``.

    Raises:
        InputError: `batches` is empty.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm1d(1, affine=False)
        >>> reestimate_batch_norm(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])]), norm.running_mean
        (4, tensor([4.]))
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        return 0
    before = [{name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    device, samples, complete = device_of(model), 0, False
    try:
        with evaluation_mode(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for x in batches:
                x = x.to(device, non_blocking=True) if isinstance(x, Tensor) else x
                _ = model(x) if forward is None else forward(model, x)
                samples += len(x)
        complete = samples > 0
    finally:
        for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not complete:
                _restore(norm, buffers)
    if not complete:
        raise InputError("no batch was given to re-estimate batch-norm statistics from; give at least one")
    return samples


def _restore(norm: nn.Module, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in norm.named_buffers(recurse=False):
            value.copy_(buffers[name])
