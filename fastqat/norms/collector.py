"""Adding up what the layers deliver: squared norms per layer, and the gradients of parameters that have several parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._errors import InputError
from .rules import Names, Rule
from .rules.registry import sq_norm_of
from .taps import quietly
from .targets import Targets

_AT_ONCE = 1 << 24  # elements of per-sample gradients of a shared parameter


class Use(NamedTuple):
    """One use of a parameter of some `shape`, by a rule that can wait: what its gradients are made of, for any part of the batch."""

    rule: Rule
    layer: Any
    own: str
    shape: torch.Size
    x: Tensor
    grad_y: Tensor
    rows: slice | None
    versions: tuple[int, int]

    def add_to(self, total: Tensor, samples: slice) -> None:
        """Add the gradients of some samples."""
        if self.versions != (_version(self.x), _version(self.grad_y)):
            raise InputError(
                f"what was kept of a {type(self.layer).__name__} until the end of the block, for a parameter that is used several times, "
                "was changed in place; leave the inputs of layers and the gradients as they are until the block has ended"
            )
        grads = self.rule.grads(self.layer, self.x[samples], self.grad_y[samples], Names({self.own}))[self.own]
        (total if self.rows is None else total[:, self.rows]).add_(grads)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


class Collector:
    """Collects one pass.

    The norm of a sum is not the sum of norms: gradients of a parameter that is used more than once are added up first, ``[N, *shape]``,
    and so are those of the columns of `scale_grads`. Where that would be large, the inputs and gradients of the uses are kept instead, and
    the sum is made for some samples at a time.

    Attributes:
        several: ids of parameters that are used more than once.
    """

    def __init__(self, targets: Targets, scale_grads: bool):
        self._owners = targets.owners
        self._layers = [target.name for target in targets.targets]
        self._columns = targets.scales if scale_grads else {}
        self._wanted = {id(p) for p in self._columns.values()}
        self.several: set[int] = set()
        self._sq_norms: dict[str, Tensor] = {}
        self._sums: dict[int, Tensor] = {}
        self._uses: dict[int, list[Use]] = {}

    def is_kept(self, parameter: Tensor) -> bool:
        """Whether its gradients themselves are needed, not only their norm."""
        key = id(parameter)
        return key in self.several or key in self._wanted or len(self._owners[key]) > 1

    def add_layer(
        self,
        name: str,
        rule: Rule,
        layer: Any,
        x: Tensor,
        grad_y: Tensor,
        parameters: Mapping[str, Tensor],
        rows: Mapping[str, slice | None] | None = None,
    ) -> None:
        """Take one use of the `parameters`, by the names of the rule; `rows`: the part of each that is meant, where it is not the whole."""
        kept = Names(own for own, parameter in parameters.items() if self.is_kept(parameter))
        if len(kept) < len(parameters):
            self.add_sq_norm(name, rule.sq_norm(layer, x, grad_y, Names(parameters) - kept))
        waits = Names(own for own in kept if rule.deferrable and x.shape[0] * parameters[own].numel() > _AT_ONCE)
        for own in waits:
            part = None if rows is None else rows[own]
            use = Use(rule, layer, own, parameters[own].shape, x, grad_y, part, (_version(x), _version(grad_y)))
            self._uses.setdefault(id(parameters[own]), []).append(use)
        now = kept - waits
        for own, grads in (rule.grads(layer, x, grad_y, now) if now else {}).items():
            self.add_grads(parameters[own], grads, None if rows is None else rows[own])

    def add_sq_norm(self, layer: str, sq_norm: Tensor) -> None:
        """Add ``[N]`` to a layer's."""
        before = self._sq_norms.get(layer)
        self._sq_norms[layer] = sq_norm if before is None else before + sq_norm

    def add_grads(self, parameter: Tensor, grads: Tensor, rows: slice | None = None) -> None:
        """Add ``[N, *shape]`` to a parameter's, or to some rows of it."""
        if rows is not None:
            whole = grads.new_zeros(grads.shape[0], *parameter.shape)
            whole[:, rows] = grads
            grads = whole
        before = self._sums.get(id(parameter))
        self._sums[id(parameter)] = grads if before is None else before + grads

    def scale_grads(self, samples: int, device: torch.device) -> Tensor:
        """``[N, S]``: a row for each sample of the gradients of the quantizers' parameters; 0 for those that were not reached."""
        columns = [  # [N, numel] each
            self._sums[id(p)].unsqueeze(-1).flatten(1).to(device) if id(p) in self._sums else torch.zeros(samples, p.numel(), device=device)
            for p in self._columns.values()
        ]
        return torch.cat(columns, 1) if columns else torch.zeros(samples, 0, device=device)

    def scale_names(self) -> tuple[str, ...]:
        """The names of its columns."""
        return tuple(name if p.numel() == 1 else f"{name}[{i}]" for name, p in self._columns.items() for i in range(p.numel()))

    def sq_norms(self, samples: int, device: torch.device) -> dict[str, Tensor]:
        """Squared norms ``[N]`` by layer, in the order of the model; 0 for those that the backward pass did not reach."""
        for parameter, grads in self._sums.items():
            if parameter not in self._uses:
                self.add_sq_norm(self._owners[parameter][0], sq_norm_of(grads))
        for parameter, uses in self._uses.items():
            with quietly(uses[0].grad_y.device):
                self.add_sq_norm(self._owners[parameter][0], self._sq_norm_of_uses(uses, self._sums.get(parameter)))
        self._uses.clear()
        found = {name: sq_norm.to(device) for name, sq_norm in self._sq_norms.items()}
        zeros = torch.zeros(samples, device=device)
        return {name: found.get(name, zeros) for name in self._layers}

    @staticmethod
    def _sq_norm_of_uses(uses: list[Use], sums: Tensor | None) -> Tensor:
        """``[N]``, from the uses that waited and the gradients ``[N, *shape]`` of those that did not."""
        samples, shape = uses[0].grad_y.shape[0], uses[0].shape
        wide = torch.promote_types(uses[0].grad_y.dtype, torch.float32)
        step = max(_AT_ONCE // shape.numel(), 1)
        parts = []
        for first in range(0, samples, step):
            chunk = slice(first, min(first + step, samples))
            total = uses[0].grad_y.new_zeros((chunk.stop - first, *shape), dtype=wide) if sums is None else sums[chunk].clone()
            for use in uses:
                use.add_to(total, chunk)
            parts.append(sq_norm_of(total))
        return torch.cat(parts)
