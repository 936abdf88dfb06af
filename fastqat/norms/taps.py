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


class _Tap:
    """One output: calls `receive` with the kept tensors and the gradient, once."""

    def __init__(self, node: Any, receive: Receive, where: str):
        self.node, self.receive, self.where = node, receive, where
        self.spent = False

    def __call__(self, grad_y: Tensor) -> None:
        if self.spent:
            raise InputError(
                f"a second backward pass reached {self.where}; accepted: one. Add the losses up, or use a new block for each pass"
            )
        self.spent = True
        kept = self._kept()
        self.node = None
        if torch.is_grad_enabled() or torch.is_autocast_enabled(grad_y.device.type):
            with quietly(grad_y.device):
                self.receive(kept, grad_y.detach())
        else:
            self.receive(kept, grad_y)

    def _kept(self) -> tuple[Tensor, ...]:
        if self.node is None:
            return ()
        try:
            return self.node.saved_tensors
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
        self._handles: list[RemovableHandle] = []

    def watch(self, y: Tensor, inputs: tuple[Tensor, ...], receive: Receive, where: str) -> Tensor:
        """Have `receive(inputs, grad_y)` called in the backward pass; returns what takes the place of y: the same tensor if it can be."""
        if not y.requires_grad or y._is_view():
            y = _Anchored.apply(self.anchor, y)
        node = _Kept.apply(self.anchor, *(x.detach() for x in inputs)).grad_fn if inputs else None
        self._handles.append(y.register_hook(_Tap(node, receive, where)))
        return y

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
