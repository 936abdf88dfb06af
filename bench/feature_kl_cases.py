"""Cases of the divergence of feature maps, forward and backward, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastqat.ops.feature_kl.api import feature_kl
from fastqat.ops.feature_kl.reference import eager_feature_kl

from .case import Case, Contender, Goal, Results, Size, Work, needs_compiler

Device = Literal["cpu", "cuda"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SHAPES: dict[str, tuple[int, ...]] = {"cpu": (32, 256, 28, 28), "cuda": (256, 256, 56, 56)}
QUICK = 4  # times fewer samples


@dataclass(frozen=True)
class Maps:
    """Student, which wants a gradient, and teacher [samples, channels, height, width], and the gradient of the rows."""

    student: Tensor
    teacher: Tensor
    grad_row: Tensor


def maps_of(distribution: str, layout: str, dtype: str, device: Device) -> Callable[[Size], Maps]:
    """Normal values, a teacher at some distance from the student; 2 samples of 9 × 9 at the size ``"small"``."""

    def setup(size: Size) -> Maps:
        torch.manual_seed(0)
        samples, *rest = SHAPES[device]
        shape = {"full": (samples, *rest), "quick": (samples // QUICK, *rest), "small": (2, 24, 9, 9)}[size]
        where: dict[str, Any] = {"device": device if torch.cuda.is_available() else "cpu", "dtype": DTYPES[dtype]}
        student = torch.randn(shape, **where).contiguous(memory_format=LAYOUTS[layout])
        teacher = torch.randn_like(student).add_(student)
        rows = shape[: 2 if distribution == "spatial" else 1]
        return Maps(student.requires_grad_(), teacher, torch.full(rows, 1 / student.numel(), device=where["device"]))

    return setup


def _work(inputs: Maps, rows_of: Callable[[Tensor, Tensor], Tensor]) -> Work:
    def call() -> Results:
        row = rows_of(inputs.student, inputs.teacher)
        (grad,) = torch.autograd.grad(row, inputs.student, inputs.grad_row)
        return {"row": row.detach(), "grad": grad}

    return Work(call)


def _contenders(distribution: str) -> tuple[Contender, Contender, Contender]:
    """fastqat, the formulas one by one, and the formulas compiled."""

    def eager(student: Tensor, teacher: Tensor) -> Tensor:
        return eager_feature_kl(student, teacher, distribution)

    def compiled(inputs: Maps) -> Work:
        torch.compiler.reset()
        return _work(inputs, torch.compile(eager, fullgraph=True, dynamic=False))

    return (
        Contender("fastqat", lambda inputs: _work(inputs, lambda x, t: feature_kl(x, t, distribution=distribution))),
        Contender("eager formulas", lambda inputs: _work(inputs, eager)),
        Contender("compiled formulas", compiled, needs_compiler, quick=False),
    )


def _copy(inputs: Maps) -> Work:
    into = torch.empty_like(inputs.teacher)
    return Work(lambda: {"copy": into.copy_(inputs.teacher)}, moved=2 * inputs.teacher.nbytes)


def _moved(distribution: str) -> Callable[[Maps], int]:
    """Both maps are read, but for ``"channel"`` once more for the gradient, which is written."""
    passes = 2 if distribution == "channel" else 5
    return lambda inputs: passes * inputs.teacher.nbytes


def _case(device: Device, distribution: str, layout: str, dtype: str) -> Case:
    fastqat, eager, compiled = _contenders(distribution)
    return Case(
        f"{'gpu/' if device == 'cuda' else ''}feature_kl/{distribution}-{layout}-{dtype}",
        f"KL of feature maps {list(SHAPES[device])}, {distribution}, {layout}, {dtype}, with its gradient (quick: a quarter)",
        maps_of(distribution, layout, dtype, device),
        fastqat,
        (Contender("copy_", _copy, agrees=()), eager, compiled),
        moved=_moved(distribution),
        goals=(Goal("copy_", 0.4 if device == "cpu" else 0.8, "share"), Goal("eager formulas", 1 / 3), Goal("compiled formulas", 1)),
        seconds=6 if device == "cpu" else 1,
        device=device,
        clock=None if device == "cpu" else "cold",
        tolerance=1e-4 if dtype == "fp32" else 1e-2,  # both round their gradients to bf16
    )


MEASURED = (
    *(("channel", layout, "fp32") for layout in LAYOUTS),
    *(("spatial", layout, dtype) for layout in LAYOUTS for dtype in DTYPES),
    ("flat", "contiguous", "fp32"),
    ("flat", "channels-last", "bf16"),
)
CASES = tuple(_case("cpu", *key) for key in MEASURED)
GPU_CASES = tuple(_case("cuda", *key) for key in MEASURED)
