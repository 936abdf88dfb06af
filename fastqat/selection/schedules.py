"""How the weight β of the error vector score falls from epoch to epoch; 1 − β is the weight of the disagreement score."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

from fastqat._errors import InputError

Schedule = Callable[[int, int], float]

SCHEDULES: dict[str, Schedule] = {
    "cosine": lambda epoch, epochs: math.cos(math.pi * epoch / (2 * epochs)),
    "half_cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * epoch / epochs)),
    "linear": lambda epoch, epochs: 1 - epoch / epochs,
    "sqrt": lambda epoch, epochs: 1 - math.sqrt(epoch / epochs),
    "quadratic": lambda epoch, epochs: 1 - (epoch / epochs) ** 2,
    "constant": lambda epoch, epochs: 0.5,
}


def beta_at(schedule: str | Schedule, epoch: int, epochs: int) -> float:
    """β(t) of E epochs at epoch t.

    ``cosine`` cos(πt/2E), the paper's; ``half_cosine`` ½(1+cos(πt/E)), the released code's; ``linear`` 1−t/E; ``sqrt`` 1−√(t/E);
    ``quadratic`` 1−(t/E)²; ``constant`` ½; or a callable ``(t, E) -> β``.

    Raises:
        InputError: unknown name, t outside [0, E), or a callable that leaves [0, 1].

    Source: ACS, Huang et al., TMLR 2024 (arXiv 2306.07215): β and its ablation; ``half_cosine`` from its released code.

    Example:
        >>> [round(beta_at("cosine", epoch, 4), 3) for epoch in range(4)]
        [1.0, 0.924, 0.707, 0.383]
    """
    if schedule not in SCHEDULES if isinstance(schedule, str) else not callable(schedule):
        raise InputError(f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)} or pass a callable (epoch, epochs) -> beta")
    if not 0 <= epoch < epochs:
        raise InputError(f"epoch must be in [0, {epochs}); got {epoch}; give epochs= the length of the whole training")
    beta = (SCHEDULES[schedule] if isinstance(schedule, str) else schedule)(epoch, epochs)
    if not isinstance(beta, numbers.Real) or not 0 <= beta <= 1:
        raise InputError(f"the schedule must give numbers in [0, 1]; it gave {beta!r} at epoch {epoch} of {epochs}")
    return float(beta)


def schedule_name(schedule: str | Schedule) -> str:
    """What a schedule is called: its name, or that of the callable."""
    return schedule if isinstance(schedule, str) else getattr(schedule, "__qualname__", type(schedule).__name__)
