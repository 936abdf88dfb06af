"""The outputs of chosen layers, taken during a forward by hooks that are gone when it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from fastqat._errors import InputError
from fastqat.methods.cascade_layers import Layer
from fastqat.methods.cascade_terms import Distribution, Reduction, divergence, feature_map


class Taps:
    """Runs a teacher and a student and compares their layers while the student runs.

    Of the teacher's forward only what is compared is kept, of ``channel`` the means over positions; each is let go when the student's
    layer has been compared with it (what the gradient needs of it stays in the graph).

    The hooks are made once and put on for the length of one forward, so that torch.compile sees the same ones every time; it does not
    trace them.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        distribution: Distribution,
        reduction: Reduction,
        block_input: Literal["own", "student"],
        grad: Literal["joint", "block"],
    ):
        self.layers, self.distribution, self.reduction, self.grad = layers, distribution, reduction, grad
        self.fed = block_input == "student"
        self._taught: list[deque[Tensor]] = [deque() for _ in layers]
        self._seen: list[tuple[int, Tensor, int]] = []
        self._overwritten: set[int] = set()
        self._terms: list[tuple[int, Tensor]] = []
        self._weights: Tensor | None = None
        self._keep, self._feed, self._compare = (
            [partial(torch.compiler.disable(hook), place) for place in range(len(layers))]
            for hook in (self._keep_output, self._feed_teacher, self._compare_output)
        )

    @torch.no_grad()
    def teach(self, run: Callable[[], Any]) -> Any:
        """``run()``, a forward of the teacher; its layers' outputs are kept for `compare`, unless that feeds them anew."""
        self._clear()
        with ExitStack() as stack:
            for layer, hook in zip(self.layers, self._keep, strict=True):
                stack.callback(layer.teacher.register_forward_hook(hook).remove)
            output = run()
        changed = {place for place, kept, version in self._seen if kept._version != version} - self._overwritten
        self._overwritten |= changed  # a later layer works in place: from now on these are copied
        if self.fed:
            self._clear()
            return output
        self._seen.clear()
        return self.teach(run) if changed else output

    def compare(self, run: Callable[[], Any], weights: Tensor | None) -> tuple[Any, Tensor]:
        """``run()``, a forward of the student, and Σ over layers of the divergence from the teacher, a mean over the batch.

        Raises:
            InputError: a layer ran another number of times than in the teacher, or not at all.
        """
        self._weights = weights
        try:
            with ExitStack() as stack:
                for place, layer in enumerate(self.layers):
                    if self.fed:
                        stack.callback(layer.student.register_forward_pre_hook(self._feed[place], with_kwargs=True).remove)
                    stack.callback(layer.student.register_forward_hook(self._compare[place]).remove)
                output = run()
            self._check_all_ran()
            return output, torch.stack([term for _, term in self._terms]).sum()
        finally:
            self._clear()

    def _clear(self) -> None:
        for queue in self._taught:
            queue.clear()
        self._seen.clear()
        self._terms, self._weights = [], None

    def _check_all_ran(self) -> None:
        ran = {place for place, _ in self._terms}
        for place, layer in enumerate(self.layers):
            if self._taught[place] or place not in ran:
                raise InputError(
                    f"layer {layer.name!r} ran {'less often in the student than in the teacher' if place in ran else 'in no forward'}; "
                    "leave it out of layers=, or, if the model was compiled before, give QuaRC a model that has not run yet"
                )

    def _keep_output(self, place: int, module: nn.Module, args: Any, output: Any) -> None:
        kept = feature_map(output, self.layers[place], self.distribution)
        if place in self._overwritten:
            kept = kept.clone()
        self._seen.append((place, kept, kept._version))
        self._taught[place].append(kept)

    @torch.no_grad()
    def _feed_teacher(self, place: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before the student's layer, which may overwrite its input: the teacher's layer on a copy, which it may overwrite."""
        layer = self.layers[place]
        args, kwargs = _pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
        self._taught[place].append(feature_map(layer.teacher(*args, **kwargs), layer, self.distribution))

    def _compare_output(self, place: int, module: nn.Module, args: Any, output: Any) -> None:
        layer = self.layers[place]
        if not self._taught[place]:
            raise InputError(f"layer {layer.name!r} ran more often in the student than in the teacher; leave it out of layers=")
        own = feature_map(output, layer, self.distribution)
        if place in self._overwritten:
            own = own.clone()  # the gradient needs it as it is now
        each = divergence(own, self._taught[place].popleft(), layer, self.distribution, self.reduction)
        term = each.mean() if self._weights is None else (each * self._weights).mean()
        self._terms.append((place, _for_layer_only(term, module) if self.grad == "block" else term))


def _for_layer_only(term: Tensor, layer: nn.Module) -> Tensor:
    """`term` with a gradient for the parameters of `layer` and for nothing before it."""
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    if not term.requires_grad or not trained:
        return term.detach()
    with _hooks_aside(trained):
        grads = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
    used = [(parameter, grad) for parameter, grad in zip(trained, grads, strict=True) if grad is not None]
    return _Known.apply(term.detach(), len(used), *(parameter for parameter, _ in used), *(grad for _, grad in used))


@contextmanager
def _hooks_aside(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Run the block without the gradient hooks of `parameters`: they are for the whole gradient, in the backward pass that follows."""
    hooks = [(found, dict(found)) for p in parameters if (found := getattr(p, "_backward_hooks", None))]
    try:
        for found, _ in hooks:
            found.clear()
        yield
    finally:
        for found, content in hooks:
            found.update(content)


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        """tensors: `count` parameters, then the gradient of each."""
        ctx.save_for_backward(*tensors[count:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it as *Any
        known = ctx.saved_tensors
        return (None, None, *(grad * each for each in known), *(None for _ in known))
