"""Cases of the scores from logits: every score, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from fastqat.ops.logit_scores.api import logit_scores
from fastqat.ops.logit_scores.reference import eager_logit_scores

from .case import Case, Contender, Goal, Results, Size, Work, needs_compiler

Device = Literal["cpu", "cuda"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = {"131k-1000": (131_072, 1000), "16k-32k": (16_384, 32_768)}
QUICK = 16  # times fewer samples
DRAWN = 1024  # rows that are drawn; the rest repeats them
BLOCK = 2**25  # elements that formulas take at a time on the CPU: their temporaries are many


@dataclass(frozen=True)
class Logits:
    """Logits of student and teacher [samples, classes] and the labels [samples]."""

    student: Tensor
    teacher: Tensor
    targets: Tensor

    def blocks(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Student, targets and teacher in blocks of rows; in one on a GPU."""
        rows = len(self.student) if self.student.is_cuda else max(1, BLOCK // self.student.shape[1])
        return list(zip(self.student.split(rows), self.targets.split(rows), self.teacher.split(rows), strict=True))


def _rows(values: Tensor, samples: int) -> Tensor:
    return values.repeat(-(-samples // len(values)), 1)[:samples].contiguous()


def logits_of(shape: str, dtype: str, device: Device) -> Callable[[Size], Logits]:
    """Normal logits, a teacher at some distance from the student; 50 samples at the size ``"small"``, a sixteenth at ``"quick"``."""

    def setup(size: Size) -> Logits:
        torch.manual_seed(0)
        samples, classes = SHAPES[shape]
        samples = {"full": samples, "quick": samples // QUICK, "small": 50}[size]
        where: dict[str, Any] = {"device": device if torch.cuda.is_available() else "cpu", "dtype": DTYPES[dtype]}
        student = torch.randn(min(DRAWN, samples), classes).mul_(3)
        teacher = torch.randn_like(student).add_(student)
        targets = torch.randint(classes, (samples,), device=where["device"])
        return Logits(_rows(student.to(**where), samples), _rows(teacher.to(**where), samples), targets)

    return setup


def _named(scores: dict[str, Tensor]) -> Results:
    return {name: value.float() if value.dtype == torch.bool else value for name, value in scores.items()}


def _scores(inputs: Logits) -> Work:
    return Work(lambda: _named(logit_scores(inputs.student, inputs.targets, inputs.teacher)._asdict()))


def _formulas(formulas: Callable[..., dict[str, Tensor]]) -> Callable[[Logits], Work]:
    def make(inputs: Logits) -> Work:
        def call() -> Results:
            parts = [formulas(*block) for block in inputs.blocks()]
            return _named({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

        return Work(call)

    return make


def _compiled(inputs: Logits) -> Work:
    torch.compiler.reset()
    return _formulas(torch.compile(eager_logit_scores, fullgraph=True, dynamic=False))(inputs)


def _copy(inputs: Logits) -> Work:
    """One tensor is read and one written: as many bytes as both are to read."""
    into = torch.empty_like(inputs.student).copy_(inputs.teacher)
    return Work(lambda: {"copy": into.copy_(inputs.student)}, moved=2 * inputs.student.nbytes)


def _case(device: Device, shape: str, dtype: str) -> Case:
    samples, classes = SHAPES[shape]
    # In bf16 the formulas round every step.
    agrees: tuple[str, ...] | None = None if dtype == "fp32" else ()
    return Case(
        f"{'gpu/' if device == 'cuda' else ''}logit_scores/{shape}-{dtype}",
        f"every score from logits [{samples}, {classes}] of student and teacher (quick: a sixteenth), {dtype}",
        logits_of(shape, dtype, device),
        Contender("fastqat", _scores),
        (
            Contender("copy_", _copy, agrees=()),
            Contender("eager formulas", _formulas(eager_logit_scores), agrees=agrees),
            Contender("compiled formulas", _compiled, needs_compiler, agrees=agrees, quick=False),
        ),
        moved=lambda inputs: inputs.student.nbytes + inputs.teacher.nbytes,
        goals=(
            Goal("copy_", 0.4 if device == "cpu" else 0.85, "share"),
            Goal("eager formulas", 1 / 5),
            Goal("compiled formulas", 1 / 1.5),
        ),
        seconds=8 if device == "cpu" else 1,
        device=device,
        clock=None if device == "cpu" else "cold",
        tolerance=1e-4,
    )


CASES = tuple(_case("cpu", *key) for key in product(SHAPES, DTYPES))
GPU_CASES = tuple(_case("cuda", *key) for key in product(SHAPES, DTYPES))
