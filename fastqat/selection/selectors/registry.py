"""The registry of selectors, and what goes in and out of one.

A selector is a function ``pick(request, *, options...) -> Selection`` in a file of its own. It sees one group of samples (a class, or
everything), answers with positions inside that group, best first, and knows nothing of classes: `select` does the balancing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastqat._errors import InputError


@dataclass(frozen=True)
class Selection:
    """What was kept: `indices` int64 ``[K]``, best first; `weights` fp32 ``[K]`` where the method defines loss weights, else None.

    A weight multiplies its sample's loss. Unless the selector says otherwise, the mean of weight · loss over the selection estimates the
    mean loss over all samples, so that the mean weight is about 1 and the learning rate keeps its meaning. Two say otherwise: the weights
    of ``infobatch`` preserve the sum, with a mean above 1; those of ``gradmatch`` match the mean gradient, not the loss, and their mean
    may be far below 1.
    """

    indices: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return self.indices.numel()


class Request(NamedTuple):
    """One group to pick from.

    ``utility`` floating ``[size]``, larger is better whatever the score's direction, or None when the selector needs no scores;
    ``budget`` how many to pick, 1 ≤ budget ≤ size; ``group`` the number of the class (0 without balance); ``generator`` for draws, None:
    torch's global one; ``features`` floating ``[size, D]`` on any device, finite, or None when the selector needs none; ``val_features``
    ``[M, D]`` of validation samples of all classes, likewise; ``labels`` int64 ``[size]``, or None where they are unknown;
    ``scores`` ``[size]`` the scores as given, not turned, or None.
    """

    utility: Tensor | None
    size: int
    budget: int
    group: int
    generator: torch.Generator | None
    features: Tensor | None = None
    val_features: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None

    def utilities(self, *, finite: bool = False, least: float | None = None) -> Tensor:
        """`utility`, there and as the selector needs it.

        Raises:
            InputError: there are no scores (a selector that uses them registers ``needs=("scores",)``), some are infinite although
                `finite`, or below `least`.
        """
        if self.utility is None:
            raise InputError("this selector goes by score; pass a ScoreTable or one score per sample")
        if finite and not bool(self.utility.isfinite().all()):
            raise InputError(
                "this selector needs finite scores; some are infinite; check the model, or use a selector that ranks, such as topk"
            )
        if least is not None and float(self.utility.min()) < least:
            raise InputError(
                f"this selector needs scores of at least {least:g}, of which large ones are best; got {float(self.utility.min()):g}; "
                "use evs, loss, grand, ... (list_scores() shows the direction of each)"
            )
        return self.utility

    def ranked(self, *, descending: bool) -> Tensor:
        """All positions by utility; among equals the lowest position first. InputError where there are no scores."""
        return self.utilities().sort(descending=descending, stable=True).indices

    def given_features(self) -> Tensor:
        """`features`; InputError where there are none (a selector that compares samples registers ``needs=("features",)``)."""
        if self.features is None:
            raise InputError("this selector compares samples; pass features= or a ScoreTable with features")
        return self.features


@dataclass(frozen=True)
class Selector:
    """One row of `list_selectors`.

    ``needs``: any of "scores", "features" and "val_features". ``kinds``: the kinds of features of `score_dataset` that it understands;
    empty: any. ``order``: how picks of several classes are put in one order. "largest" or
    "smallest" utility first, or None: by rank within the class. ``weights``: what its weights preserve, "mean" (see `Selection`; of
    several classes `select` rescales them so that it holds over all) or "sum" (kept as the selector gives them), or None: it gives none.
    """

    name: str
    rule: str
    needs: tuple[str, ...]
    source: str
    order: Literal["largest", "smallest"] | None
    weights: Literal["mean", "sum"] | None
    pick: Callable[..., Selection]
    kinds: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the keyword options that `select` passes on."""
        return tuple(inspect.signature(self.pick).parameters)[1:]


_selectors: dict[str, Selector] = {}


def register_selector(
    name: str,
    *,
    rule: str,
    source: str,
    needs: tuple[str, ...] = (),
    order: Literal["largest", "smallest"] | None = None,
    weights: Literal["mean", "sum"] | None = None,
    kinds: tuple[str, ...] = (),
) -> Callable[[Callable[..., Selection]], Callable[..., Selection]]:
    """Decorator: enter a ``pick(request, *, options...)`` function under `name`."""

    def enter(pick: Callable[..., Selection]) -> Callable[..., Selection]:
        if name in _selectors:
            raise ValueError(f"selector {name!r} is already registered; choose another name")
        _selectors[name] = Selector(name, rule, needs, source, order, weights, pick, kinds)
        return pick

    return enter


def get_selector(name: str) -> Selector:
    """The selector called `name`; InputError with the known names otherwise."""
    if name not in _selectors:
        raise InputError(f"unknown selector {name!r}; choose one of {', '.join(sorted(_selectors))}")
    return _selectors[name]


def list_selectors() -> dict[str, Selector]:
    """Every selector: name → `Selector` (rule, needs, source, options).

    Example:
        >>> import fastqat.selection as selection
        >>> selection.list_selectors()["topk"].needs
        ('scores',)
    """
    return dict(sorted(_selectors.items()))
