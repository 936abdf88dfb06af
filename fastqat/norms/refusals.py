"""What functions of torch must not do inside of a block, and what an error says about it."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .._errors import InputError
from .functional import mixes_samples
from .spread import spreads_in
from .targets import NO_RULE

BACKWARD = frozenset((Tensor.backward, torch.autograd.backward, torch.autograd.grad))


def name_of(func: Any) -> str:
    """For messages: 'matmul', 'the attribute T'."""
    return func.__name__ if func.__name__ != "__get__" else f"the attribute {func.__self__.__name__}"


def enclosing_function() -> type[torch.autograd.Function] | None:
    """The autograd Function in whose forward this runs: what that makes gets the gradients that its backward says."""
    forwards = {getattr(kind.forward, "__code__", None): kind for kind in _functions(torch.autograd.Function)}
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code not in forwards:
        frame = frame.f_back
    return None if frame is None else forwards[frame.f_code]


def _functions(kind: type[torch.autograd.Function]) -> Iterator[type[torch.autograd.Function]]:
    for each in kind.__subclasses__():
        yield each
        yield from _functions(each)


def check_backward(func: Any, args: Any, kwargs: Any, counted: set[int]) -> None:
    """Refuse a backward pass that ends before all that counts: what it does not reach would count as 0."""
    if spreads_in((args, kwargs)):
        raise InputError(f"{name_of(func)} is given what is made of parameters alone; accepted: a loss of the model's samples")
    inputs = kwargs.get("inputs", args[1] if func is torch.autograd.grad and len(args) > 1 else None)
    if inputs is not None and not counted <= {id(x) for x in _pytree.tree_leaves(inputs)}:
        raise InputError(
            f"{name_of(func)} is to reach its inputs only, and not all of the parameters that count are among them, so their norms would "
            "be wrong; accepted: loss.backward(), or all of these parameters. Other gradients, as of a penalty, belong out of the block"
        )


def check_statistics(func: Any, args: Any, kwargs: Any) -> None:
    """Refuse functions that make a sample depend on the others."""
    if mixes_samples(func, args, kwargs):
        raise InputError(
            f"{name_of(func)} takes the statistics of the batch (training=True), which mix the samples, so that none has a gradient of its "
            "own; accepted: running statistics, as in eval mode, or group_norm"
        )


def check_known(func: Any, samples: int | None) -> None:
    """Refuse what is made of parameters before there is a batch."""
    if samples is None:
        raise InputError(
            f"a parameter is given to {name_of(func)} before the model has seen its input, so the batch is not known; do this out of the "
            "block, or under torch.no_grad() where no gradient is meant, as for an average of weights"
        )


def not_followed(func: Any, label: str, args: Any, kwargs: Any, samples: int | None, constants: Container[Tensor]) -> InputError:
    """The error that says what stands in the way of a parameter being followed."""
    given = f"a parameter of {label} is given to {name_of(func)}"
    strange = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x not in constants]
    folded = next((list(x.shape) for x in strange if x.dim() and x.shape[0] != samples), None)
    if folded:
        return InputError(
            f"{given} together with {folded}; accepted: the {samples} samples of the batch in dimension 0. Put them there "
            f"(batch_first=True, no windows or positions folded into the batch), or {NO_RULE}"
        )
    return InputError(
        f"{given}, through which it cannot be followed; accepted: sums and products with tensors of the batch, and what is made of the "
        "parameter alone. A penalty on parameters is no part of a sample's loss: move it out of the block, and put what takes no gradient, "
        f"as an average of weights, under torch.no_grad(). For the rest {NO_RULE}"
    )
