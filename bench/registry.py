"""All cases, in the order of the table."""

from __future__ import annotations

from fastqat._errors import InputError

from . import fake_quant_cases, score_cases, step_cases
from .case import Case

CASES: tuple[Case, ...] = (*fake_quant_cases.CASES, *step_cases.CASES, *score_cases.CASES)


def chosen(pattern: str | None = None, *, quick: bool = False) -> list[Case]:
    """The cases whose name contains `pattern`; with `quick` only the quick ones, unless `pattern` names others.

    Raises:
        InputError: no case has `pattern` in its name.
    """
    named = [case for case in CASES if pattern is None or pattern in case.name]
    if not named:
        raise InputError(f"no benchmark has {pattern!r} in its name; there are {', '.join(case.name for case in CASES)}")
    return [case for case in named if case.quick or not quick] or named
