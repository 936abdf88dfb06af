"""Cases of the divergence of feature maps, forward and backward, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastqat.ops.feature_kl.api import feature_kl
from fastqat.ops.feature_kl.reference import DISTRIBUTIONS, eager_feature_kl

from .case import LAYOUTS, Case, Contender, Goal, Results, Size, Work, needs_compiler

Device = Literal["cpu", "cuda"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The first block and the last of a small residual net, in cache; a block of a large one, beyond it.
SHAPES = {"128x16x32x32": (128, 16, 32, 32), "128x64x8x8": (128, 64, 8, 8), "32x256x56x56": (32, 256, 56, 56)}
GPU_SHAPE = (256, 256, 56, 56)
QUICK = 4  # times fewer samples


class Variant(NamedTuple):
    """What is measured, and the name that tells it from others."""

    name: str
    shape: tuple[int, ...]
    distribution: str
    layout: str = "contiguous"
    dtype: str = "fp32"


@dataclass(frozen=True)
class Maps:
    """Student, which wants a gradient, and teacher [samples, channels, height, width], and the gradient of the rows."""

    student: Tensor
    teacher: Tensor
    grad_row: Tensor


def maps_of(variant: Variant, device: Device) -> Callable[[Size], Maps]:
    """Normal values, a teacher at some distance from the student; 2 samples of 9 × 9 at the size ``"small"``."""

    def setup(size: Size) -> Maps:
        torch.manual_seed(0)
        samples, *rest = variant.shape
        shape = {"full": (samples, *rest), "quick": (samples // QUICK, *rest), "small": (2, 24, 9, 9)}[size]
        where: dict[str, Any] = {"device": device if torch.cuda.is_available() else "cpu", "dtype": DTYPES[variant.dtype]}
        student = torch.randn(shape, **where).contiguous(memory_format=LAYOUTS[variant.layout])
        teacher = torch.randn_like(student).add_(student)
        rows = shape[: 2 if variant.distribution == "spatial" else 1]
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


def _copy(distribution: str) -> Contender:
    """A copy into a new tensor, as the gradient is; of ``"channel"``, which writes none of that size, into one that is there."""

    def make(inputs: Maps) -> Work:
        into = torch.empty_like(inputs.teacher)
        copy = (lambda: into.copy_(inputs.teacher)) if distribution == "channel" else inputs.teacher.clone
        return Work(lambda: {"copy": copy()}, moved=2 * inputs.teacher.nbytes)

    return Contender("copy_" if distribution == "channel" else "x.clone()", make, agrees=())


def _moved(distribution: str) -> Callable[[Maps], int]:
    """Both maps are read, but for ``"channel"`` once more for the gradient, which is written."""
    passes = 2 if distribution == "channel" else 5
    return lambda inputs: passes * inputs.teacher.nbytes


def _case(device: Device, variant: Variant, goals: Callable[[str], tuple[Goal, ...]]) -> Case:
    fastqat, eager, compiled = _contenders(variant.distribution)
    copy = _copy(variant.distribution)
    return Case(
        f"{'gpu/' if device == 'cuda' else ''}feature_kl/{variant.name}",
        f"KL of feature maps {list(variant.shape)}, {variant.distribution}, {variant.layout}, {variant.dtype}, with its gradient "
        "(quick: a quarter)",
        maps_of(variant, device),
        fastqat,
        (copy, eager, compiled),
        moved=_moved(variant.distribution),
        goals=(*goals(copy.name), Goal("eager formulas", 1 / 3), Goal("compiled formulas", 1)),
        seconds=1,
        device=device,
        clock=None if device == "cpu" else "cold",
        tolerance=1e-4 if variant.dtype == "fp32" else 1e-2,  # both round their gradients to bf16
    )


def _cpu_case(variant: Variant) -> Case:
    # In cache, where a copy is several times as fast, exponentials take the time, and no share of it is asked for.
    beyond_cache = variant.shape == SHAPES["32x256x56x56"]
    return _case("cpu", variant, lambda copy: (Goal(copy, 0.4, "share"),) if beyond_cache else ())


GPU_MEASURED = (
    *(("channel", layout, "fp32") for layout in LAYOUTS),
    *(("spatial", layout, dtype) for layout in LAYOUTS for dtype in DTYPES),
    ("flat", "contiguous", "fp32"),
    ("flat", "channels-last", "bf16"),
)
CASES = tuple(
    _cpu_case(variant)
    for variant in (
        *(Variant(f"{name}-{distribution}", shape, distribution) for name, shape in SHAPES.items() for distribution in DISTRIBUTIONS),
        Variant("32x256x56x56-spatial-channels-last", SHAPES["32x256x56x56"], "spatial", "channels-last"),
        Variant("32x256x56x56-spatial-channels-last-bf16", SHAPES["32x256x56x56"], "spatial", "channels-last", "bf16"),
        Variant("128x64x8x8-spatial-bf16", SHAPES["128x64x8x8"], "spatial", dtype="bf16"),
    )
)
GPU_CASES = tuple(_case("cuda", Variant("-".join(key), GPU_SHAPE, *key), lambda copy: (Goal(copy, 0.8, "share"),)) for key in GPU_MEASURED)
