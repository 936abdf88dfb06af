"""Repeated sampling of random subsets: a fresh uniform subset each epoch."""

from __future__ import annotations

import torch

from fastqat._errors import InputError
from fastqat.selection.budget import check_count
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "rs2",
    rule="epoch e takes the next `budget` samples of a permutation; when it is used up, a new one is drawn",
    source="RS2, Okanovic et al., ICLR 2024",
)
def rs2(request: Request, *, epoch: int = 0, seed: int = 0, replacement: bool = False) -> Selection:
    """The subset of `epoch`, a pure function of ``(seed, epoch)``.

    Without replacement (the paper's stronger form) ⌊size / budget⌋ consecutive epochs share one permutation, so that no sample comes
    back before the others were seen; samples left over by the division wait for the next permutation. With ``replacement=True`` each
    epoch's subset is drawn independently.

    Raises:
        InputError: `epoch` or `seed` is not a whole number ≥ 0, or there is a ``generator=``.
    """
    if request.generator is not None:
        raise InputError("rs2 draws from seed= and epoch=; leave generator= out")
    check_count("epoch", epoch, least=0)
    turns = 1 if replacement else request.size // request.budget
    permutation = torch.randperm(request.size, generator=generator_for(seed, Stream.RS2, request.group, epoch // turns))
    start = epoch % turns * request.budget
    return Selection(permutation[start : start + request.budget])
