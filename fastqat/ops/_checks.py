"""Checks that the public operators share."""

from __future__ import annotations

from torch import Tensor

from .._errors import InputError


def check_tensors(**given: object) -> None:
    """Raise for the first of `given` that is no tensor, by its name."""
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is {type(value).__name__}; accepted: a tensor, such as torch.as_tensor({name})")
