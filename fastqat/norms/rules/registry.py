"""The registry of rules: how the gradient of each sample with respect to a layer's own parameters follows from its input and grad_y."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

Names = frozenset[str]


class Rule:
    """Per-sample gradients of the own parameters of one type of layer.

    `grads` is the reference, and what sums the parts of shared parameters; `sq_norm` is overridden where the norm can be had without them.
    Results are of the loss as it was differentiated, in fp32 (fp64 for fp64). N is dimension 0 of x and grad_y, x is what the layer read:
    in the dtype of grad_y, or integer. The layer's output must not share memory with its input.

    Attributes:
        parameters: names of the parameters that the rule knows; a layer that owns others is refused. None: whatever the layer owns.
        methods: what the layer's forward pass is made of; a subclass or an instance that has its own in place of one has no rule.
        deferrable: whether `grads` reads no values but those of x and grad_y, so that it may run after an optimizer's step.
    """

    parameters: ClassVar[Names | None] = frozenset({"weight", "bias"})
    methods: ClassVar[Names] = frozenset({"forward"})
    deferrable: ClassVar[bool] = False

    def refuses(self, layer: Any) -> str | None:
        """Why this layer's gradient has no part per sample, as with batch statistics; None when it does."""
        return None

    def is_batched(self, layer: Any, x: Tensor) -> bool:
        """Whether x has as many dimensions as a batch has; several layers of torch take a single sample too."""
        return True

    def grads(self, layer: Any, x: Tensor, grad_y: Tensor, names: Names) -> dict[str, Tensor]:
        """The gradients ``[N, *parameter.shape]`` of the parameters in `names`, from the layer's input and its output's gradient."""
        raise NotImplementedError

    def sq_norm(self, layer: Any, x: Tensor, grad_y: Tensor, names: Names) -> Tensor:
        """``[N]``: squared norm over the parameters in `names`, never empty."""
        grads = self.grads(layer, x, grad_y, names).values()
        return sum((sq_norm_of(grad) for grad in grads), grad_y.new_zeros(()))


def sq_norm_of(grads: Tensor) -> Tensor:
    """``[N, *shape]`` → ``[N]``, of scalars too."""
    return grads.unsqueeze(-1).flatten(1).square().sum(1)


_rules: dict[type[nn.Module], Rule] = {}


def register_rule(*types: type[nn.Module]) -> Callable[[type[Rule]], type[Rule]]:
    """Class decorator: enter a `Rule` for layers of these types.

    Example:
        >>> import torch
        >>> from fastqat.norms import Rule, register_rule
        >>> class Shift(torch.nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.shift = torch.nn.Parameter(torch.zeros(width))
        ...     def forward(self, x):
        ...         return x + self.shift
        >>> @register_rule(Shift)
        ... class ShiftRule(Rule):
        ...     parameters = frozenset({"shift"})
        ...     def grads(self, layer, x, grad_y, names):
        ...         return {"shift": grad_y.flatten(1, -2).sum(1)}
    """

    def enter(rule: type[Rule]) -> type[Rule]:
        for each in types:
            _rules[each] = rule()
        return rule

    return enter


def rule_of(kind: type[nn.Module]) -> Rule | None:
    """The rule that is entered for a type of layer itself."""
    return _rules.get(kind)


def find_rule(layer: nn.Module) -> Rule | None:
    """The rule of the layer's type, or of a base class whose forward pass it inherits; None when there is none."""
    for base in type(layer).__mro__:
        if base in _rules:
            rule = _rules[base]
            return rule if all(inherits(layer, base, method) for method in rule.methods) else None
    return None


def inherits(layer: nn.Module, base: type[nn.Module], method: str) -> bool:
    """Whether a method of the layer is that of `base`: neither overridden nor replaced on the instance, as some libraries do."""
    of_base = getattr(base, method)
    own = vars(layer).get(method)
    return getattr(type(layer), method) is of_base and (own is None or getattr(own, "__func__", None) is of_base)
