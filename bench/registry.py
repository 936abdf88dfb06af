"""All cases, in the order of the table."""

from __future__ import annotations

import torch

from fastqat._errors import InputError

from . import (
    affine_norm_cases,
    fake_quant_all_cases,
    fake_quant_cases,
    feature_kl_cases,
    geometry_cases,
    gpu_cases,
    gpu_pass_cases,
    lsq_cases,
    norm_cases,
    norm_layer_cases,
    pass_cases,
    score_cases,
    step_cases,
    stream_cases,
    submodular_cases,
)
from .case import Case

CASES: tuple[Case, ...] = (
    *fake_quant_cases.CASES,
    *lsq_cases.CASES,
    *fake_quant_all_cases.CASES,
    *step_cases.CASES,
    *score_cases.CASES,
    *feature_kl_cases.CASES,
    *pass_cases.CASES,
    *stream_cases.CASES,
    *geometry_cases.CASES,
    *submodular_cases.CASES,
    *norm_cases.CASES,
    *norm_layer_cases.CASES,
    *affine_norm_cases.CASES,
    *gpu_cases.CASES,
    *gpu_pass_cases.CASES,
)


def chosen(pattern: str | None = None, *, quick: bool = False) -> list[Case]:
    """The cases for this machine's devices whose name contains `pattern`; with `quick` only the quick ones, unless `pattern` names others.

    Raises:
        InputError: no case has `pattern` in its name, or those that have need a GPU.
    """
    named = [case for case in CASES if pattern is None or pattern in case.name]
    if not named:
        families = sorted({case.name.partition("/")[0] for case in CASES})
        raise InputError(f"no benchmark has {pattern!r} in its name; the names begin with {', '.join(families)}")
    able = [case for case in named if case.device == "cpu" or torch.cuda.is_available()]
    if not able:
        raise InputError(f"the benchmarks with {pattern!r} in their name need a CUDA device, and torch sees none")
    return [case for case in able if case.quick or not quick] or able


def left_out(pattern: str | None = None) -> list[str]:
    """Names of the cases with `pattern` in their name for which this machine lacks a GPU."""
    return [] if torch.cuda.is_available() else [case.name for case in CASES if case.device == "cuda" and (pattern or "") in case.name]
