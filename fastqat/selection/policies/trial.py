"""Try a selector or a recorded score on made-up samples: what is wrong is refused before training and not at the first selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.recorder import DynamicsRecorder
from fastqat.selection.selectors.registry import Request, Selector, get_selector

_SAMPLES, _CLASSES = 64, 8


def checked_selector(method: str, options: Mapping[str, Any], fraction: float, features: str | None, has_val: bool) -> Selector:
    """The selector `method`, found to take `options` and given what it needs.

    Raises:
        InputError: it is unknown or goes without scores, an option is unknown or out of range, or features are missing or not used.
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
    if features is not None and not compares:
        raise InputError(f"{method} does not look at features; leave features= out, or choose a selector that compares samples")
    if "val_features" in selector.needs and not has_val:
        raise InputError(f"{method} matches validation samples; pass val_view= a held-out data set")
    # A number above that of the made-up samples may be a position or a size of the real ones.
    tried = {key: value for key, value in options.items() if key == "classes" or type(value) is not int or value <= _SAMPLES}
    selector.pick(_made_up(fraction, features, options.get("classes", _CLASSES)), **tried)
    return selector


def try_recording(score: str) -> None:
    """Refuse a score of a training that needs more than the model in training, such as ``misses``; InputError says what."""
    recorder = DynamicsRecorder(1, distributed=False)
    recorder.update(torch.zeros(1, dtype=torch.long), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    recorder.table(score)


def _made_up(fraction: float, features: str | None, classes: int) -> Request:
    """Scores that all differ, with few above their mean; features of the kind `features`, or probabilities, which suit all metrics."""
    generator = torch.Generator().manual_seed(0)
    scores = 0.5 ** torch.arange(1, _SAMPLES + 1, dtype=torch.float64)
    rows, val_rows = (_rows(features, classes, generator) for _ in range(2))
    labels, budget = torch.zeros(_SAMPLES, dtype=torch.long), max(2, round(fraction * _SAMPLES))
    return Request(scores, _SAMPLES, budget, 0, generator, rows, val_rows, labels, scores)


def _rows(features: str | None, classes: int, generator: torch.Generator) -> Tensor:
    probabilities = torch.rand(_SAMPLES, classes, generator=generator).softmax(1)
    if features not in ("error", "gradient"):
        return probabilities
    error = probabilities - torch.eye(classes)[torch.arange(_SAMPLES) % classes]
    return error if features == "error" else torch.cat([error, error, -error], dim=1)  # inputs 1 and −1
