"""A uniform draw without repetition."""

from __future__ import annotations

import torch

from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector("random", rule="`budget` samples drawn uniformly, none twice", source="the baseline of every selection paper")
def random(request: Request) -> Selection:
    """The first `budget` positions of one permutation drawn with ``generator=`` (None: torch's global generator)."""
    return Selection(torch.randperm(request.size, generator=request.generator)[: request.budget])
