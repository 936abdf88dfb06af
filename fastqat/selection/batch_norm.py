"""Batch-norm statistics of the whole data, after training on a selected part of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastqat._errors import InputError
from fastqat.selection.forwards import Forward, device_of, evaluation_mode, output_of, to_device
from fastqat.selection.scoring.reading import samples_in


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> int:
    """Replace the running statistics of every batch norm by the plain average over `batches`; returns the number of samples read.

    Unlike `torch.optim.swa_utils.update_bn` only the batch norms leave eval mode (dropout and quantizers stay as at test time), and an
    error puts the old statistics back. The device is waited for once, at the end.

    Args:
        model: changed in place: ``running_mean``, ``running_var``, ``num_batches_tracked``.
        batches: inputs ``[B, ...]`` on any device, tensors or what holds them; not read when the model has no batch norm.
        forward: ``forward(model, x)`` in place of ``model(x)``.

    Raises:
        InputError: `batches` is empty, or a batch gave NaN or infinite statistics (the message names the layer).

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm1d(1, affine=False)
        >>> reestimate_batch_norm(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])]), norm.running_mean
        (4, tensor([4.]))
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.running_mean is not None}
    if not norms:
        return 0
    device, samples = device_of(model), 0
    with _statistics_anew(list(norms.values())), evaluation_mode(model):
        for norm in norms.values():
            norm.train()
        for x in batches:
            x = to_device(x, device)
            output_of(model, x, forward)
            samples += samples_in(x)
        if samples == 0:
            raise InputError("no batch was given to re-estimate batch-norm statistics from; give at least one")
        _check_finite(norms)
    return samples


@contextmanager
def _statistics_anew(norms: list[_BatchNorm]) -> Iterator[None]:
    """Reset the running statistics, to be the plain average of what the block runs; an error in it puts the old ones back."""
    before = [({name: value.clone() for name, value in norm.named_buffers(recurse=False)}, norm.momentum) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        yield
    except BaseException:
        with torch.no_grad():
            for norm, (buffers, _) in zip(norms, before, strict=True):
                for name, value in norm.named_buffers(recurse=False):
                    value.copy_(buffers[name])
        raise
    finally:
        for norm, (_, momentum) in zip(norms, before, strict=True):
            norm.momentum = momentum


def _check_finite(norms: dict[str, _BatchNorm]) -> None:
    """Refuse NaN and infinite statistics; one wait for the device whatever the number of layers."""
    finite = [torch.stack([torch.isfinite(b).all() for b in norm.buffers(recurse=False)]).all() for norm in norms.values()]
    good = torch.stack([flag.to(finite[0].device) for flag in finite]).tolist()
    wrong = [name or type(norm).__name__ for (name, norm), fine in zip(norms.items(), good, strict=True) if not fine]
    if wrong:
        raise InputError(
            f"the statistics of {len(wrong)} batch norms became NaN or infinite, the first is layer {wrong[0]!r}; the old ones are back: "
            "look for NaN in the data and for diverged weights"
        )
