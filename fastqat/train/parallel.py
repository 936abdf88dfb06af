"""Training in several processes: the gradient of the whole batch, statistics of all samples, and the proof that all hold the same model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fastqat._distributed import from_first, gather_objects, gather_rows, world
from fastqat._errors import FastqatError
from fastqat.quantizers import Quantizer
from fastqat.train.batches import TrainBatch

# Buffers meet at the end of an epoch, see `Replica.end_epoch`; torch 2.13 renamed the option.
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in signature(DistributedDataParallel).parameters else "broadcast_buffers": False
}


class Replica:
    """One process's copy of a model that several train; `module` is what the training loop calls.

    `module` is the model itself in one process, else in `DistributedDataParallel`, which averages the gradients. With the share of each
    `TrainBatch` that is the gradient of the mean loss of the whole batch, uneven parts included. A step size whose gradient is divided by
    the square root of the batch (``grad_factor="per_scale"`` of an activation) gets the factor of the whole batch. Batch norm normalises by
    the process's own part of the batch, unless it is a `torch.nn.SyncBatchNorm`.

    Args:
        model: on its device, and the same in all processes.
    """

    def __init__(self, model: nn.Module):
        self.model, self.processes, self.share = model, world().size, 1.0
        self.module: nn.Module = model
        if self.processes == 1:
            return
        self.module = DistributedDataParallel(model, **_KEEP_BUFFERS)
        for parameter in _divided_by_batch(model):
            parameter.register_hook(self._of_whole_batch)

    def _of_whole_batch(self, grad: Tensor) -> Tensor:
        """1/√B_r → 1/√B, from share = B_r·W/B."""
        return grad * math.sqrt(self.share / self.processes)

    def follow(self, batches: Iterable[TrainBatch]) -> Iterator[TrainBatch]:
        """`batches`, each with its share known to the gradients that follow."""
        for batch in batches:
            self.share = batch.share
            yield batch

    def end_epoch(self) -> None:
        """Give all processes the same buffers: the mean of their running batch-norm statistics, process 0's of all else.

        The mean is over all samples that were trained on, where the statistics of one process are those of its parts only.
        """
        if self.processes == 1:
            return
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        running = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
        known = {id(b) for b in running}
        _take_mean(running)
        _take_first([b for b in self.model.buffers() if id(b) not in known])


def _divided_by_batch(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of activation quantizers whose gradient factor counts the samples of the batch."""
    for module in model.modules():
        if isinstance(module, Quantizer) and module.role == "activation":
            rule = module.paper_factor if module.spec.grad_factor == "paper" else module.spec.grad_factor
            if rule == "per_scale":
                yield from module.parameters()


@torch.no_grad()
def _take_mean(tensors: list[Tensor]) -> None:
    """Replace `tensors` by their means over the processes, in a fixed order of adding: the same bits on all."""
    if tensors:
        mean = torch.cat(gather_rows(torch.cat([t.flatten().double() for t in tensors])[None])).mean(0)
        for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


@torch.no_grad()
def _take_first(tensors: list[Tensor]) -> None:
    """Replace `tensors` by those of process 0."""
    if tensors:
        for tensor, value in zip(tensors, from_first([t.cpu() for t in tensors]), strict=True):
            tensor.copy_(value)


def check_agreement(model: nn.Module, selected: Iterable[Tensor | None], when: str) -> None:
    """Compare a hash of `model` and of the tensors `selected` over the processes.

    Raises:
        FastqatError: they differ; names the processes.
    """
    if world().size == 1:
        return
    mine = digest([value for value in model.state_dict().values() if isinstance(value, Tensor)]), digest(selected)
    digests = gather_objects(mine)
    for what, column in zip(("weights", "selected samples"), zip(*digests, strict=True), strict=True):
        others = [str(rank) for rank, digest in enumerate(column) if digest != column[0]]
        if others:
            raise FastqatError(
                f"the {what} of process {', '.join(others)} differ from those of process 0 {when}; go on from the last checkpoint with "
                "--resume, on machines of one kind with the same versions of torch and fastqat"
            )


def digest(tensors: Iterable[Tensor | None]) -> str:
    """A hash of the bits of `tensors`."""
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def weights_name(state: Mapping[str, Tensor]) -> str:
    """A name for the weights in a state_dict: runs that began with the same bits have the same one."""
    return digest(state.values())[:8]


def own_batches(samples: int, batch_size: int) -> Tensor | None:
    """Indices of the whole batches of a data set, in its order, that this process evaluates; None: all of them."""
    here = world()
    if here.size == 1:
        return None
    return torch.cat([torch.arange(0), *torch.arange(samples).split(batch_size)[here.rank :: here.size]])
