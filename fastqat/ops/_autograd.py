"""What the ops' autograd Functions share: torch.func's transforms, and the refusal of a second derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C._functorch import TransformType

Backward = Callable[..., tuple[Tensor | None, ...]]
_NO_SECOND = (
    "the gradients of fastqat's operators cannot be differentiated again: straight-through rounding has no second derivative, and "
    "feature_kl does not compute its own"
)
_DIFFERENTIATES = (TransformType.Grad, TransformType.Jvp)


def transforming() -> bool:
    """Whether this call stands inside a transform of torch.func: vmap, grad, jacrev, ..."""
    return torch._C._are_functorch_transforms_active()


def tracked(*tensors: Tensor | None) -> bool:
    """Whether a call on `tensors` must go through its Function: a gradient is wanted, or a transform of torch.func may want one."""
    if transforming() or forward_ad._current_level >= 0:
        return True  # requires_grad tells of one level of a transform only, and nothing of forward mode
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def apply(function: Any, *args: Any) -> Any:
    """``function.apply(*args)`` for a Function made by `op_function`."""
    if not transforming():
        return function.apply(*args)
    from ._transformed import apply_transformed  # here, since it imports torch's compiler: a second that most processes never need

    return apply_transformed(function, *args)


def op_function(function: Any) -> Any:
    """Complete an autograd Function that has ``compute(*args)``, ``save(ctx, *args)`` and ``backward(ctx, *grads)``.

    It gets the forward of eager mode, and a twin, `transformed`, with `setup_context`, as torch.func's transforms want it: torch takes
    30 µs longer to call that one, half of what a small tensor costs altogether.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        function.save(ctx, *args)
        return function.compute(*args)

    class Transformed(function):  # type: ignore[misc]  # a class known at run time only
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return function.compute(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            function.save(ctx, *inputs)

    Transformed.__name__ = function.__name__
    function.forward = staticmethod(forward)
    function.transformed = Transformed
    return function


def once(backward: Backward) -> Backward:
    """A backward without a derivative of its own: who asks for one gets an error, never a zero."""

    @functools.wraps(backward)
    def first_only(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if transforming():
            levels = torch._C._functorch.get_interpreter_stack() or []
            if sum(level.key() in _DIFFERENTIATES for level in levels) > 1:
                raise RuntimeError(_NO_SECOND)
            return backward(ctx, *grads)
        with torch.no_grad():
            found = backward(ctx, *grads)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiled backward refuses by itself
            return found
        return _Refusal.apply(len(found), *found, *grads, *ctx.saved_tensors)

    return first_only


class _Refusal(torch.autograd.Function):
    """Hands gradients on, tied to what they were computed from, and raises when these are to get gradients through them."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """tensors: `count` gradients, then what they depend on."""
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:  # type: ignore[override]  # torch types it as *Any
        raise RuntimeError(_NO_SECOND)
