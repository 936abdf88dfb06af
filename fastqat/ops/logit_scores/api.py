"""Public per-sample scores: validation and documentation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._errors import InputError
from .._checks import check_tensors
from . import op
from .fields import LogitScores
from .reference import field_names

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _check_logits(name: str, logits: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise InputError(f"{name} has shape {list(logits.shape)}; accepted: [samples, classes] with at least one class")
    if logits.dtype not in DTYPES:
        raise InputError(f"{name} is {logits.dtype}; accepted: float32, bfloat16, float16, float64: use {name}.float()")


def _accepted_targets(logits: Tensor, soft: bool) -> str:
    samples, classes = logits.shape  # read for a message only: torch.compile would take them as constants
    return f"int64 class indices [{samples}]" + (f" or floating class probabilities [{samples}, {classes}]" if soft else "")


def _check_targets(targets: Tensor, logits: Tensor, soft: bool) -> None:
    if targets.dtype != torch.int64 and not (soft and targets.dtype in DTYPES):
        raise InputError(f"targets is {targets.dtype}; accepted: {_accepted_targets(logits, soft)}: use targets.long()")
    if targets.shape != (logits.shape if targets.is_floating_point() else logits.shape[:1]):
        raise InputError(f"targets is {targets.dtype} {list(targets.shape)}; accepted: {_accepted_targets(logits, soft)}")


def check_inputs(logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None, *, soft: bool = True) -> None:
    """Raise InputError for tensors that do not fit together; `soft`: whether targets may be probabilities."""
    check_tensors(logits=logits, **{name: t for name, t in (("targets", targets), ("teacher_logits", teacher_logits)) if t is not None})
    _check_logits("logits", logits)
    if targets is not None:
        _check_targets(targets, logits, soft)
    if teacher_logits is not None:
        _check_logits("teacher_logits", teacher_logits)
        if teacher_logits.shape != logits.shape:
            raise InputError(
                f"teacher_logits has shape {list(teacher_logits.shape)} and logits {list(logits.shape)}; accepted: equal shapes, "
                "the same samples and the same classes"
            )
    for name, other in (("targets", targets), ("teacher_logits", teacher_logits)):
        if other is not None and other.device != logits.device:
            raise InputError(f"{name} is on {other.device} and logits on {logits.device}; move both to one device")


def logit_scores(logits: Tensor, targets: Tensor | None = None, teacher_logits: Tensor | None = None) -> LogitScores:
    r"""Score every sample by its logits: how hard, how uncertain, how far from the teacher, all in one read of memory.

    With p = softmax(logits), t = softmax(teacher_logits), both at temperature 1, and y the target class:

    ==========  =========  ======================================================================
    score       needs      formula
    ==========  =========  ======================================================================
    loss        targets    −log p_y, the cross-entropy
    evs         targets    ‖p − onehot(y)‖₂, the error vector score of ACS (EL2N)
    correct     targets    argmax p = y (the first of equal maxima), bool
    entropy     logits     −Σ p log p
    confidence  logits     max p
    margin      logits     largest p − second largest p (1 for a single class)
    ds          teacher    ‖p − t‖₂, the disagreement score of ACS
    res         teacher    KL(p ‖ t) = Σ p log(p / t), the relative entropy score of QuaRC
    kd          teacher    −Σ t log p, the distillation loss
    ==========  =========  ======================================================================

    Nothing is averaged: one value per sample, natural logarithms. The scores are detached; no gradient flows through them.

    Soft targets, probabilities y of the classes (mixed or smoothed labels, votes of annotators), may stand in place of the class:
    loss = −Σ y log p, evs = ‖p − y‖₂, correct where argmax p = argmax y (the first of equal maxima each), with 0 · log 0 = 0. The
    formulas are taken as written, so that a row of y need not sum to 1.

    Error at most 1e-5 of the value + 1e-12, for logits up to ±1e4 and up to 100 000 classes, near agreement with the teacher and near
    certainty too: evs is √((Σ_{j≠y} p_j)² + Σ_{j≠y} p_j²), never built from 1 − p_y. On the CPU the bits depend neither on the number
    of threads nor on the instruction set. Classes may be masked with −inf, or with ``torch.finfo(dtype).min`` where a class
    of the row is left: a row of nothing but that is outside of the range above, and the backends differ on it. Probabilities below 1e-38
    may count as 0, so that kd is finite where the student excludes what the teacher gives such a one. A row that holds NaN or +inf, or
    nothing but −inf, gets NaN scores and ``correct = False``; nothing is raised. So do loss, evs and correct of a row whose soft target
    holds a number that is negative, infinite or NaN and, on another device than the CPU, of a row whose target is no class: raising would
    wait for the device.

    Args:
        logits: ``[N, C]``, C ≥ 1; float32, bfloat16, float16 (float64 on the reference backend). Rows at any stride are read in place;
            classes that are not contiguous cost one copy.
        targets: ``[N]`` int64 in ``[0, C)``, or ``[N, C]`` of any of the dtypes of `logits`.
        teacher_logits: ``[N, C]``, of any of these dtypes.

    Returns:
        LogitScores: named tuple of ``[N]`` tensors, float32 (float64 where an input is float64), None where the input was not given.

    Raises:
        InputError: no tensor, shape, dtype or device not as above, or, on the CPU, a target outside ``[0, C)`` (names the first such row).

    Source: evs, ds: Huang et al., ACS, TMLR 2024 (arXiv 2306.07215); evs also Paul et al. 2021 (EL2N); res: Tong et al.,
    QuaRC, 2025 (arXiv 2507.17768).

    Example:
        >>> import torch, fastqat as fq
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> scores = fq.logit_scores(logits, torch.tensor([0, 1]), teacher_logits=torch.zeros(2, 2))
        >>> scores.evs, scores.ds
        (tensor([0.1686, 0.7071]), tensor([0.5385, 0.0000]))
        >>> fq.logit_scores(logits, torch.tensor([[0.9, 0.1], [0.5, 0.5]])).evs
        tensor([0.0272, 0.0000])
        >>> fq.logit_scores(logits).loss is None
        True
    """
    check_inputs(logits, targets, teacher_logits)
    names = field_names(targets is not None, teacher_logits is not None)
    given = (None if t is None else t.detach() for t in (logits, targets, teacher_logits))
    return LogitScores(**dict(zip(names, op.logit_scores(*given), strict=True)))
