"""GraNd: the size of the loss gradient in all layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from fastqat._errors import InputError
from fastqat._modes import frozen
from fastqat.norms import per_sample_grad_norms
from fastqat.selection.scores.registry import Watched, register_score


@register_score(
    "grand",
    formula="‖∇_θ −log p_y‖₂",
    direction="largest",
    needs=("targets", "gradients"),
    source="GraNd, Paul et al., NeurIPS 2021 (arXiv 2107.07075)",
)
@contextmanager
def grand(model: nn.Module, *, unknown: Literal["refuse", "func"] = "refuse") -> Iterator[Watched]:
    """Norm of the cross-entropy's gradient in all parameters, those that are frozen too, step sizes included. ``[N]`` fp32.

    One backward pass, without gradients of weights, by `fastqat.per_sample_grad_norms`, which `unknown` is for. The model is in eval mode,
    as `fastqat.selection.score_dataset` puts it.

    Raises:
        InputError: a layer has no rule and `unknown` is ``"refuse"``; the forward runs without gradients by itself; or a tensor of
            the model was made in inference mode.
    """
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_inference():
            raise InputError(
                f"grand runs a backward pass, which {name}, made under torch.inference_mode(), cannot take part in; make or load "
                "the model outside of it"
            )
    watched = Watched()
    with frozen(model), torch.enable_grad(), per_sample_grad_norms(model, loss_reduction="sum", unknown=unknown) as norms:
        yield watched
        if not watched.logits.requires_grad:
            raise InputError("grand needs the gradient of the logits, and the forward gives them without; remove its no_grad or detach()")
        F.cross_entropy(watched.logits, watched.targets, reduction="sum").backward()
    watched.scores = norms.total
