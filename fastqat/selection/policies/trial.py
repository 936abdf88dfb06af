"""Try a selector or a recorded score on made-up samples: what is wrong is refused before training and not at the first selection."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.recorder import DynamicsRecorder
from fastqat.selection.scores.registry import direction_of
from fastqat.selection.selectors.registry import Request, Selector, get_selector

_SAMPLES, _CLASSES = 64, 8


def try_selector(method: str, options: Mapping[str, Any], fraction: float, score: str, features: str | None, has_val: bool) -> None:
    """Refuse a selector that does not take `options` or is not given what it needs, or that cannot go by `score`.

    Raises:
        InputError: it is unknown or goes without scores, an option is unknown or out of range, features are missing, of another kind than
            it understands, or not used, or it needs scores of which large ones are best.
    """
    selector = get_selector(method)
    if not selector.needs:
        raise InputError(f"{method} needs no scores; use RandomSubset or RS2 (fastqat.selection)")
    unknown = set(options) - set(selector.options)
    if unknown:
        raise InputError(f"{method} does not take {', '.join(sorted(unknown))}; its options: {', '.join(selector.options) or 'none'}")
    compares = "features" in selector.needs
    if compares and features is None:
        raise InputError(f"{method} compares samples by their features; pass features='embedding', or another kind (see score_dataset)")
    if selector.kinds and features not in selector.kinds:
        raise InputError(f"{method} understands {' or '.join(f'features={kind!r}' for kind in selector.kinds)}; got {features!r}")
    if features is not None and not compares:
        raise InputError(f"{method} does not look at features; leave features= out, or choose a selector that compares samples")
    if "val_features" in selector.needs and not has_val:
        raise InputError(f"{method} matches validation samples; pass val_view= a held-out data set")
    request = _made_up(fraction, features)
    _try(selector, options, request, features)
    if direction_of(score) == "smallest" and "scores" in selector.needs:
        try:
            _try(selector, options, _made_up(fraction, features, turned=True), features)
        except InputError:
            raise InputError(
                f"{method} needs scores of at least 0 of which large ones are best; of {score} small ones are; use evs, loss, "
                "grand_last, ... (list_scores() shows the direction of each)"
            ) from None


def _try(selector: Selector, options: Mapping[str, Any], request: Request, features: str | None) -> None:
    """Pick from made-up samples, with what they can be asked: their classes are their own, a number above theirs may be a position."""
    tried = {key: value for key, value in options.items() if type(value) is not int or value <= _SAMPLES}
    classes = tried.get("classes")
    if "classes" in selector.options and (classes is None or (type(classes) is int and classes > 1)):
        tried["classes"] = _CLASSES if features == "gradient" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        selector.pick(request, **tried)


def try_recording(score: str) -> None:
    """Refuse a score of a training that needs more than the model in training, such as ``misses``; InputError says what."""
    recorder = DynamicsRecorder(1, distributed=False)
    recorder.update(torch.zeros(1, dtype=torch.long), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    recorder.table(score)


def _made_up(fraction: float, features: str | None, *, turned: bool = False) -> Request:
    """Scores that all differ, with few above their mean, small ones best where they are `turned`.

    Features of the kind `features`, or probabilities, which suit all metrics.
    """
    generator = torch.Generator().manual_seed(0)
    scores = 0.5 ** torch.arange(1, _SAMPLES + 1, dtype=torch.float64)
    rows, val_rows = (_rows(features, generator) for _ in range(2))
    labels, budget = torch.zeros(_SAMPLES, dtype=torch.long), max(2, round(fraction * _SAMPLES))
    return Request(-scores if turned else scores, _SAMPLES, budget, 0, generator, rows, val_rows, labels, scores)


def _rows(features: str | None, generator: torch.Generator) -> Tensor:
    probabilities = torch.rand(_SAMPLES, _CLASSES, generator=generator).softmax(1)
    if features not in ("error", "gradient"):
        return probabilities
    error = probabilities - torch.eye(_CLASSES)[torch.arange(_SAMPLES) % _CLASSES]
    return error if features == "error" else torch.cat([error, error, -error], dim=1)  # inputs 1 and −1
