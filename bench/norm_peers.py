"""Per-sample gradient norms by other means: Opacus, BackPACK, torch.func, one sample at a time; each gives squared norms ``[N]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 32  # samples that torch.func maps over at a time, the fastest of 8, 16, 32 and 64 on a CPU; it forms their gradients side by side

Pass = Callable[[], Tensor]  # one forward and what is needed of the backward


def summed_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, summed, so that a sample's gradient is that of its own loss."""
    return F.cross_entropy(logits, y, reduction="sum")


def plain_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Forward and backward with the gradients of the weights, which are dropped."""

    def call() -> None:
        summed_loss(model(x), y).backward()
        model.zero_grad(set_to_none=True)

    return call


def opacus_hooks(model: nn.Module, x: Tensor, y: Tensor) -> Pass:
    """Opacus' `GradSampleModule`: hooks form each sample's gradient of each layer."""
    from opacus.grad_sample import GradSampleModule

    wrapped = GradSampleModule(model.train(), loss_reduction="sum")

    def call() -> Tensor:
        summed_loss(wrapped(x), y).backward()
        norms = [p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters()]
        wrapped.zero_grad(set_to_none=True)
        return torch.stack(norms).sum(0)

    return call


def opacus_ghost(model: nn.Module, x: Tensor, y: Tensor) -> Pass:
    """Opacus' ghost clipping, the pass that finds the norms: Gram matrices for linear layers, single gradients for the rest."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(model.train(), loss_reduction="sum", use_ghost_clipping=True)

    def call() -> Tensor:
        summed_loss(wrapped(x), y).backward()
        norms = wrapped.get_norm_sample()
        wrapped.zero_grad(set_to_none=True)
        return norms.square()

    return call


def backpack_l2(model: nn.Module, x: Tensor, y: Tensor) -> Pass:
    """BackPACK's `BatchL2Grad`, with a rule for group norm and layer norm added, since it has none."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad
    from backpack.extensions.firstorder.base import FirstOrderModuleExtension

    class Normalization(FirstOrderModuleExtension):
        """Weight and bias behind a normalisation over the samples' own elements."""

        def __init__(self) -> None:
            super().__init__(params=["weight", "bias"])

        def weight(self, ext: Any, module: nn.Module, g_inp: Any, g_out: tuple[Tensor, ...], back: Any) -> Tensor:
            return _over_positions(module, g_out[0] * _normalized(module, module.input0)).square().sum(1)

        def bias(self, ext: Any, module: nn.Module, g_inp: Any, g_out: tuple[Tensor, ...], back: Any) -> Tensor:
            return _over_positions(module, g_out[0]).square().sum(1)

    extension = BatchL2Grad()
    for layer in (nn.GroupNorm, nn.LayerNorm):
        extension.set_module_extension(layer, Normalization())
    model, loss = extend(model.train()), extend(nn.CrossEntropyLoss(reduction="sum"))

    def call() -> Tensor:
        with backpack(extension):
            loss(model(x), y).backward()
        norms = [p.batch_l2 for p in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = None
            del parameter.batch_l2
        return torch.stack(norms).sum(0)

    return call


def _normalized(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    return F.layer_norm(x, module.normalized_shape, eps=module.eps)


def _over_positions(module: nn.Module, terms: Tensor) -> Tensor:
    """Sum ``[N, channels]`` over the positions that share a weight."""
    return terms.flatten(2).sum(2) if isinstance(module, nn.GroupNorm) else terms.flatten(1, -2).sum(1)


def torch_func(model: nn.Module, x: Tensor, y: Tensor) -> Pass:
    """``vmap(grad(...))`` of torch.func, `CHUNK` samples at a time."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return summed_loss(torch.func.functional_call(model, (parameters, buffers), (x[None],)), y[None])

    def sq_norm(x: Tensor, y: Tensor) -> Tensor:
        return sum(grad.square().sum() for grad in torch.func.grad(loss)(parameters, x, y).values())

    return lambda: torch.func.vmap(sq_norm, chunk_size=CHUNK)(x, y)


def one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> Pass:
    """A forward and a backward for each sample."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def call() -> Tensor:
        norms = []
        for i in range(len(x)):
            grads = torch.autograd.grad(summed_loss(model(x[i : i + 1]), y[i : i + 1]), parameters)
            norms.append(sum(grad.square().sum() for grad in grads))
        return torch.stack(norms)

    return call
