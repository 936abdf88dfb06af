"""Watching the gradient of a layer's output: what the layer read is kept until that gradient is there, and not longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .._errors import InputError

Receive = Callable[[tuple[Tensor, ...], Tensor], None]


class _Anchored(torch.autograd.Function):
    """y itself, or where it is a view a tensor on the same memory, as an output that requires grad; no copy."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, y: Tensor) -> Tensor:
        if y._is_view():  # an in-place operation on a view rebuilds its graph without y: what was attached to y would never run
            return y.data
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[None, Tensor | None]:  # type: ignore[override]  # torch types it as *Any
        return None, grad_y if ctx.needs_input_grad[1] else None


class _Kept(torch.autograd.Function):
    """A node that saves tensors as any operation does, so that changes in place are noticed and `saved_tensors_hooks` are asked.

    The latter is how `torch.utils.checkpoint` drops them: unpacking runs the forward again.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:  # type: ignore[override]  # never run: nothing is computed from the output
        return None


class _Joined(torch.autograd.Function):
    """Several tensors as they are; its backward has the gradients of all of them, None for those that were not reached."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tap: _Tap, *ys: Tensor) -> tuple[Tensor, ...]:
        ctx.tap = tap
        ctx.set_materialize_grads(False)
        return tuple(y.view_as(y) for y in ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it as *Any
        if any(grad is not None for grad in grads):
            ctx.tap(*grads)
        return None, None, *grads


class _Tap:
    """One output, or several together: calls `receive` with the kept tensors and the gradients, once."""

    def __init__(self, keeper: Tensor | None, receive: Callable[..., None], where: str):
        self.keeper, self.receive, self.where = keeper, receive, where
        self.spent = self.closed = False

    def remove(self) -> None:
        """Do nothing from now on, and keep nothing."""
        self.closed, self.keeper = True, None

    def __call__(self, *grads: Tensor | None) -> None:
        if self.closed:
            return
        if self.spent:
            raise InputError(
                f"a second backward pass reached {self.where}; accepted: one. Add the losses up, or use a new block for each pass"
            )
        self.spent = True
        kept = self._kept()
        self.keeper = None
        device = next(grad.device for grad in grads if grad is not None)
        if torch.is_grad_enabled() or torch.is_autocast_enabled(device.type):
            with quietly(device):
                self.receive(kept, *(None if grad is None else grad.detach() for grad in grads))
        else:
            self.receive(kept, *grads)

    def _kept(self) -> tuple[Tensor, ...]:
        if self.keeper is None:
            return ()
        try:
            return self.keeper.grad_fn.saved_tensors  # type: ignore[union-attr]  # the node of `_Kept`
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise InputError(
                f"the input of {self.where} was changed in place between forward and backward; its gradient norm needs the values that the "
                "layer read. Make the operation that changes it out of place, as with inplace=False"
            ) from error


class Taps:
    """All taps of one pass."""

    def __init__(self) -> None:
        self.anchor = torch.empty(0, requires_grad=True)
        self._handles: list[RemovableHandle | _Tap] = []

    def watch(self, y: Tensor, inputs: tuple[Tensor, ...], receive: Receive, where: str) -> Tensor:
        """Have `receive(inputs, grad_y)` called in the backward pass; returns what takes the place of y: the same tensor if it can be."""
        if not y.requires_grad or y._is_view():
            y = _Anchored.apply(self.anchor, y)
        self._handles.append(y.register_hook(_Tap(self._keep(inputs), receive, where)))
        return y

    def watch_all(self, ys: tuple[Tensor, ...], inputs: tuple[Tensor, ...], receive: Callable[..., None], where: str) -> tuple[Tensor, ...]:
        """The same for several outputs, with one call ``receive(inputs, *grads)``, None for those that the loss does not depend on."""
        tap = _Tap(self._keep(inputs), receive, where)
        self._handles.append(tap)
        return _Joined.apply(self.anchor, tap, *ys)

    def _keep(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """The output of `_Kept`, which keeps its node alive: in torch 2.10 its grad_fn alone does not."""
        return _Kept.apply(self.anchor, *(x.detach() for x in inputs)) if inputs else None

    def remove(self) -> None:
        """Take every hook off; what it kept is freed."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


@contextmanager
def quietly(device: torch.device) -> Iterator[None]:
    """As the forward of a custom operator runs: no graph, and no autocast region that would change dtypes."""
    with torch.no_grad():
        if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
            yield
            return
        with torch.autocast(device.type, enabled=False):
            yield
