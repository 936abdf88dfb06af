"""How many samples a fraction is, over everything or class by class."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastqat._errors import InputError


class Group(NamedTuple):
    """One class: its label, the data-set indices of its samples in ascending order, and how many of them to pick."""

    label: int
    members: Tensor
    budget: int


def check_fraction(fraction: float) -> float:
    """`fraction` as a float in (0, 1]; InputError otherwise."""
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real):
        raise InputError(f"fraction must be a number in (0, 1]; got {type(fraction).__name__} {fraction!r}; 0.1 keeps a tenth")
    if not 0 < fraction <= 1:
        raise InputError(f"fraction must be in (0, 1]; got {fraction}; 0.1 keeps a tenth")
    return float(fraction)


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """`value` as an int that is at least `least`; InputError otherwise, which calls it `name`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(f"{name} must be a whole number ≥ {least}; got {value!r}")
    return int(value)


def as_labels(labels: Tensor | Sequence[int], size: int) -> Tensor:
    """`labels` as int64 ``[size]`` on the CPU; InputError on anything but integers, or another length."""
    try:
        labels = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"labels must be integers, one per sample; got {type(labels).__name__} that does not hold numbers") from None
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels must be integers, one per sample; got {labels.dtype}")
    if labels.shape != (size,):
        raise InputError(f"labels must have one value per sample, [{size}]; got {list(labels.shape)}")
    return labels.long()


def whole_budget(size: int, fraction: float) -> int:
    """round(fraction · size), ties to even; InputError when that is none."""
    budget = round(check_fraction(fraction) * size)
    if budget == 0:
        raise InputError(f"fraction {fraction} of {size} samples selects none; use fraction ≥ {_enough(size)}")
    return budget


def class_groups(labels: Tensor, fraction: float) -> list[Group]:
    """One `Group` per class with budget round(fraction · n_c), ties to even, in ascending order of the labels.

    Args:
        labels: int64 ``[N]``.
        fraction: in (0, 1].

    Raises:
        InputError: a class would be left without a sample; the message names it and the fraction that would do.
    """
    check_fraction(fraction)
    ordered, members = labels.sort(stable=True)
    names, counts = torch.unique_consecutive(ordered, return_counts=True)
    budgets = [round(fraction * count) for count in counts.tolist()]
    smallest = int(counts.argmin())
    if budgets[smallest] == 0:
        size = int(counts[smallest])
        raise InputError(
            f"fraction {fraction} leaves class {int(names[smallest])} ({size} samples) empty; "
            f"use fraction ≥ {_enough(size)} or balanced=False"
        )
    parts = members.split(counts.tolist())
    return [Group(int(name), part, budget) for name, part, budget in zip(names, parts, budgets, strict=True)]


def _enough(size: int) -> float:
    """The smallest fraction, to three digits, of which `size` samples keep at least one."""
    digits = 3 + math.floor(math.log10(size))
    fraction = math.ceil(0.5 / size * 10**digits) / 10**digits
    return fraction if round(fraction * size) >= 1 else round(fraction + 10**-digits, digits)
