"""Features of samples: what a scoring pass can keep of each beside its scores, for the selectors that compare samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat._modes import frozen
from fastqat.norms import per_sample_grad_norms
from fastqat.selection.scores.registry import Watched
from fastqat.selection.scoring.last_layer import watch_last_layer

Admit = Callable[[int], None]
"""Called with the number of values per sample before these are computed; raises when all of them would take too much memory."""


class Feature(NamedTuple):
    """One kind of features.

    ``watch(model, admit)``: around one forward, as of a `Score` of stage "watch"; its `Watched.scores` are the features, fp32 ``[B, D]``.
    ``needs``: any of "targets" and "gradients".
    """

    name: str
    needs: tuple[str, ...]
    watch: Callable[[nn.Module, Admit], AbstractContextManager[Watched]]


def feature_called(name: str, model: nn.Module) -> Feature:
    """The kind of features, or else the module of `model`, called `name`.

    Raises:
        InputError: there is neither.
    """
    if name in FEATURES:
        return FEATURES[name]
    module = dict(model.named_modules()).get(name) if isinstance(name, str) and name else None
    if module is None:
        kinds = ", ".join(FEATURES)
        raise InputError(f"features must be {kinds}, or the name of a module of {type(model).__name__} (named_modules()); got {name!r}")
    return Feature(name, (), lambda model, admit: _module_input(name, module, admit))


@contextmanager
def _probabilities(model: nn.Module, admit: Admit) -> Iterator[Watched]:
    """softmax(logits)."""
    watched = Watched()
    yield watched
    admit(watched.logits.shape[1])
    watched.scores = watched.logits.detach().float().softmax(1)


@contextmanager
def _error(model: nn.Module, admit: Admit) -> Iterator[Watched]:
    """p − y: the gradient of the cross-entropy in the logits."""
    watched = Watched()
    yield watched
    admit(watched.logits.shape[1])
    watched.scores = _minus_onehot(watched)


def _minus_onehot(watched: Watched) -> Tensor:
    error = watched.logits.detach().float().softmax(1)
    return error.scatter_add_(1, watched.targets[:, None], torch.full_like(error[:, :1], -1))


@contextmanager
def _embedding(model: nn.Module, admit: Admit) -> Iterator[Watched]:
    """h: what the last linear layer multiplies."""
    watched = Watched()
    with watch_last_layer(model) as last:
        yield watched
        call = last.giving(watched.logits, asked="the embedding, the input of the last layer,", instead="name a module with features=")
        admit(call.x.shape[1])
        watched.scores = call.multiplied.float()


@contextmanager
def _gradient(model: nn.Module, admit: Admit) -> Iterator[Watched]:
    """[g ; g hᵀ] with g = p − y: the gradient of the cross-entropy in bias and weight of the last linear layer."""
    watched = Watched()
    with watch_last_layer(model) as last:
        yield watched
        call = last.giving(watched.logits, asked="the gradient of the last layer", instead="ask for features='error'")
        admit(watched.logits.shape[1] * (1 + call.x.shape[1]))
        error = _minus_onehot(watched)
        watched.scores = torch.cat([error, (error[:, :, None] * call.multiplied.float()[:, None]).flatten(1)], dim=1)


@contextmanager
def _scale_grads(model: nn.Module, admit: Admit) -> Iterator[Watched]:
    """Gradients of the cross-entropy in the parameters of all quantizers."""
    watched = Watched()
    with frozen(model), torch.enable_grad(), per_sample_grad_norms(model, loss_reduction="sum", scale_grads=True) as norms:
        yield watched
        F.cross_entropy(watched.logits, watched.targets, reduction="sum").backward()
    admit(norms.scale_grads.shape[1])
    if not norms.scale_grads.shape[1]:
        raise InputError(f"scale_grads are the gradients of quantizers, and {type(model).__name__} has none; ask for features='gradient'")
    watched.scores = norms.scale_grads.float()


@contextmanager
def _module_input(name: str, module: nn.Module, admit: Admit) -> Iterator[Watched]:
    """The input of a module, flattened to ``[B, D]``."""
    watched, inputs = Watched(), []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0].detach() if args and isinstance(args[0], Tensor) else None)

    hook = module.register_forward_pre_hook(note)
    try:
        yield watched
    finally:
        hook.remove()
    if len(inputs) != 1 or inputs[0] is None or inputs[0].shape[:1] != watched.logits.shape[:1]:
        got = [None if x is None else list(x.shape) for x in inputs]
        raise InputError(
            f"features={name!r} takes the input of that module, one tensor of {len(watched.logits)} samples once per forward; got {got}"
        )
    rows = inputs[0].flatten(1) if inputs[0].dim() > 1 else inputs[0][:, None]
    admit(rows.shape[1])
    watched.scores = rows.float()


FEATURES = {
    "embedding": Feature("embedding", (), _embedding),
    "error": Feature("error", ("targets",), _error),
    "gradient": Feature("gradient", ("targets",), _gradient),
    "scale_grads": Feature("scale_grads", ("targets", "gradients"), _scale_grads),
    "probabilities": Feature("probabilities", (), _probabilities),
}
