"""One call of a watched module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .._errors import InputError
from .targets import NO_RULE, Target


def in_backward() -> bool:
    """Whether a backward pass is running; a forward pass in it is the second one of `torch.utils.checkpoint`."""
    return torch._C._current_graph_task_id() != -1


class Call:
    """A call of a target's module, and what it was given."""

    __slots__ = ("_spec", "entered", "leaves", "target", "versions")

    def __init__(self, target: Target, args: Any, kwargs: Any):
        self.target = target
        self.entered = False  # whether the mode was switched on for it
        again = target.how in ("direct", "func")  # torch.func may have to run it again
        self.leaves: list[Any] = [*args, *kwargs.values()]
        self._spec: _pytree.TreeSpec | None = None
        if again:
            self.leaves, self._spec = _pytree.tree_flatten((args, kwargs))
        self.versions = self.versions_now() if again else []

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors among its arguments."""
        return tuple(x for x in self.leaves if isinstance(x, Tensor))

    def versions_now(self) -> list[int]:
        """How often each tensor was changed in place; inference tensors do not tell, nor can they be differentiated."""
        return [0 if x.is_inference() else x._version for x in self.tensors]

    def without_tensors(self) -> Call:
        """Itself, holding only the places of its tensors."""
        self.leaves = [Tensor if isinstance(x, Tensor) else x for x in self.leaves]
        return self

    def arguments(self, tensors: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """``(args, kwargs)`` of a direct or func target with `tensors` in the places that `without_tensors` left."""
        values = iter(tensors)
        assert self._spec is not None
        return _pytree.tree_unflatten([next(values) if x is Tensor else x for x in self.leaves], self._spec)

    def single(self, y: Any) -> tuple[Tensor, Tensor]:
        """The one tensor that a layer with a rule read, and the one that it made."""
        if len(self.tensors) != 1 or not isinstance(y, Tensor):
            made = type(y).__name__
            raise InputError(
                f"{self.target.label} was given {len(self.tensors)} tensors and made a {made}; its rule takes one tensor and makes one: "
                f"{NO_RULE}"
            )
        return self.tensors[0], y
