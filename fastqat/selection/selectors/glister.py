"""GLISTER: samples whose gradients lower the loss on validation samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.geometry.directions import MovingDirection
from fastqat.selection.geometry.one_step import ValidationGradient
from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "glister",
    rule="add argmax_i g_i·∇L_V(θ − η Σ_S g), the validation gradient after one step on what was picked",
    needs=("features", "val_features"),
    kinds=("gradient", "error"),
    source="Killamsetty et al., AAAI 2021 (arXiv 2012.10630), algorithm 2, GLISTER-ONLINE",
)
def glister(request: Request, *, classes: int | None = None, learning_rate: float = 0.01, interval: int = 1) -> Selection:
    """Positions in the order of picking; DeepCore's code never updates the validation gradient.

    To first order a step on sample i lowers the validation loss by η g_i·∇L_V. After each pick θ, of which only the last layer is known, is
    stepped by −η times the sum of the picked gradients, and ∇L_V, the mean over the validation samples, is computed anew, exactly.

    ``features`` and ``val_features`` must be of the same kind: ``features="gradient"`` of `score_dataset` with ``classes`` = C (which a
    `ScoredSubset` takes from its model), or ``features="error"`` with ``classes=None``: then only the bias takes the step.
    ``val_features``: of samples with labels of all classes that are not trained on; also with balance all of them count for each class.
    ``learning_rate``: η of the sum; 0 keeps ∇L_V. ``interval``: picks between two updates (the paper's r is budget / interval).

    Raises:
        InputError: features of other widths than val_features, val_features that are not of that kind, or an option out of range.
    """
    features, given = request.given_features(), request.val_features
    assert given is not None  # select has seen to it
    classes = features.shape[1] if classes is None else check_count("classes", classes, least=2)
    check_count("interval", interval)
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, int | float) or not 0 <= learning_rate < float("inf"):
        raise InputError(f"learning_rate must be a number ≥ 0; got {learning_rate!r}")
    if given.shape[1] != features.shape[1]:
        raise InputError(f"val_features must be as wide as features, {features.shape[1]}; got {given.shape[1]}; ask for the same kind")
    return Selection(_greedy(features, ValidationGradient(given.to(features.device), classes), request.budget, learning_rate, interval))


def _greedy(features: Tensor, validation: ValidationGradient, budget: int, learning_rate: float, interval: int) -> Tensor:
    search = MovingDirection(features)
    step = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    direction = validation.at(step)
    picks: list[int] = []
    while len(picks) < budget:
        index, _ = search.best(direction)
        search.take(index)
        picks.append(index)
        step += learning_rate * features[index].double()
        if len(picks) % interval == 0 and len(picks) < budget:
            direction = validation.at(step)
    return torch.tensor(picks, dtype=torch.int64, device=features.device)
