"""From per-sample gradients of what a quantizer hands to an op to those of its parameters, for any quantizer, by differentiating it.

A quantizer enters an op in three places: its scale and zero point, functions of its parameters alone (`Quantizer.current`), and the
values themselves (`Quantizer.transform`). Nothing here knows a quantizer by name, and parameters that are frozen count too: the
quantizer is read with stand-ins, leaves on the same memory that require a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .._errors import InputError
from .base import Quantizer


@contextlib.contextmanager
def stand_ins(quantizer: Quantizer) -> Iterator[dict[str, nn.Parameter]]:
    """`quantizer` with its parameters replaced, in grad mode."""
    own = dict(quantizer._parameters)
    leaves = {name: nn.Parameter(parameter.detach()) for name, parameter in own.items() if parameter is not None}
    quantizer._parameters.update(leaves)
    try:
        with torch.enable_grad():
            yield leaves
    finally:
        quantizer._parameters.update(own)


class ArgumentChain:
    """The way from scale and zero point to the parameters of `quantizer`, as they are when it quantizes `x`.

    Attributes:
        scale, zero_point: whether a parameter moves them.

    Raises:
        InputError (a ValueError): a parameter that moves them has neither one entry nor one per scale.
    """

    def __init__(self, quantizer: Quantizer, x: Tensor):
        with stand_ins(quantizer) as leaves:
            self._slopes = [_argument_slopes(quantizer, output, leaves) for output in quantizer.current(x)]
        self._sizes = {name: leaf.numel() for name, leaf in leaves.items()}
        self.scale, self.zero_point = (bool(each) for each in self._slopes)

    def __call__(self, scale: Tensor, zero_point: Tensor) -> dict[str, Tensor]:
        """Gradients ``[N, numel]`` of the parameters from those ``[N, scales]`` of scale and zero point, empty where nothing moves one."""
        ways = [{name: grad * slope for name, slope in each.items()} for each, grad in zip(self._slopes, (scale, zero_point), strict=True)]
        return {name: grad if grad.shape[1] == self._sizes[name] else grad.sum(1, keepdim=True) for name, grad in added(*ways).items()}


def _argument_slopes(quantizer: Quantizer, output: Tensor | None, leaves: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The derivative ``[scales]`` of each entry of `output` by each of the `leaves` that move it."""
    if output is None or not output.requires_grad:
        return {}
    probe = torch.ones_like(output).requires_grad_()
    pulled = torch.autograd.grad(output, list(leaves.values()), probe, create_graph=True, allow_unused=True)
    found = {name: slope.flatten() for name, slope in slopes(leaves, probe, pulled).items()}
    odd = [f"{name} {list(leaves[name].shape)}" for name in found if leaves[name].numel() not in (1, output.numel())]
    if odd:
        raise InputError(
            f"{quantizer.where}: no per-sample gradients of its {quantizer.role} quantizer's {', '.join(odd)} beside {output.numel()} "
            "scales; accepted: parameters with one entry, or one per scale"
        )
    return found


def added(*found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients that the ways through scale, zero point and values add up to, by parameter."""
    total: dict[str, Tensor] = {}
    for name, each in (pair for part in found for pair in part.items()):
        total[name] = total[name] + each if name in total else each
    return total


def slopes(leaves: dict[str, nn.Parameter], probe: Tensor, pulled: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """The derivatives of each value of an output y by the parameters of its scale, shaped like `probe`, of those `leaves` that move it.

    From `pulled`, the gradients of `leaves` for the gradient `probe` of y, made with a graph: they are linear in the probe, whose
    gradient is the derivative in forward direction.
    """
    sums = {name: each.sum() for name, each in zip(leaves, pulled, strict=True) if each is not None}
    return {name: torch.autograd.grad(each, probe, retain_graph=True)[0] for name, each in sums.items()}


def transform_gradients(quantizer: Quantizer, x: Tensor, grad: Tensor, then: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Gradients ``[N, numel]`` of the parameters that move ``then(quantizer.transform(x))``, whose gradient is `grad` ``[N, ...]``.

    `x` is an activation: each of its values depends on itself and the parameters of its own scale. `then` copies values, as padding does.
    """
    with stand_ins(quantizer) as leaves:
        y = then(quantizer.transform(x.detach()))
        if not y.requires_grad:
            return {}
        probe = torch.ones_like(y).requires_grad_()
        pulled = torch.autograd.grad(y, list(leaves.values()), probe, create_graph=True, allow_unused=True)
        found = slopes(leaves, probe, pulled)
    wide = torch.promote_types(grad.dtype, torch.float32)
    return {name: _shared_per_sample(slope.to(wide) * grad, quantizer.layout.axis) for name, slope in found.items()}


def _shared_per_sample(terms: Tensor, axis: int | None) -> Tensor:
    """Terms ``[N, ...]`` summed over what shares a scale: ``[N, scales]``."""
    return terms.flatten(1).sum(1, keepdim=True) if axis is None else terms.movedim(axis, 1).unsqueeze(-1).flatten(2).sum(2)
