"""Cases of scoring: the scores from logits, and a whole pass over a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastqat._tensor_data import TensorData
from fastqat.nn import calibrate, quantize
from fastqat.ops.logit_scores.api import logit_scores
from fastqat.ops.logit_scores.reference import eager_logit_scores
from fastqat.selection.scorer import score_dataset
from fastqat.train.models import make_model

from .case import Case, Contender, Goal, Results, Size, Work

BATCH = 256


@dataclass(frozen=True)
class Logits:
    """Logits of student and teacher [samples, classes] and the labels [samples]."""

    student: Tensor
    teacher: Tensor
    targets: Tensor


def logits_of(size: Size) -> Logits:
    """1000 classes; 100k samples for the record, 20k quick, 200 small."""
    torch.manual_seed(0)
    samples = {"full": 100_000, "quick": 20_000, "small": 200}[size]
    student = torch.randn(samples, 1000).mul_(3)
    return Logits(student, torch.randn(samples, 1000).add_(student), torch.randint(1000, (samples,)))


def _scores(inputs: Logits) -> Work:
    def call() -> Results:
        scores = logit_scores(inputs.student, inputs.targets, inputs.teacher)
        return {name: value.double() if value.dtype == torch.bool else value for name, value in scores._asdict().items()}

    return Work(call)


def _eager_scores(inputs: Logits) -> Work:
    return Work(lambda: eager_logit_scores(inputs.student, inputs.targets, inputs.teacher))


def _copy(inputs: Logits) -> Work:
    return Work(lambda: {"copy": inputs.student.clone()}, moved=2 * inputs.student.nbytes)


@dataclass(frozen=True)
class Pass:
    """A quantized model and a data set in memory."""

    model: nn.Module
    data: TensorData


def pass_of(size: Size) -> Pass:
    """ResNet-20 at W4A4 over 32² pictures: 2048 for the record, 1024 quick; small: ResNet-8 over 32."""
    torch.manual_seed(0)
    samples = {"full": 2048, "quick": 1024, "small": 32}[size]
    data = TensorData(torch.randint(256, (samples, 3, 32, 32), dtype=torch.uint8), torch.arange(samples) % 10)
    model = quantize(make_model("resnet8" if size == "small" else "resnet20", 10, (3, 32, 32)), "w4a4")
    return Pass(calibrate(model, [next(data.batches(BATCH))[0]]).eval(), data)


def _scoring_pass(inputs: Pass) -> Work:
    def call() -> Results:
        table = score_dataset(inputs.model, inputs.data, ["evs", "entropy"], batch_size=BATCH, progress=False)
        return {name: table[name] for name in table}

    return Work(call)


def _forward_loop(inputs: Pass) -> Work:
    @torch.no_grad()
    def call() -> Results:
        return {"logits": torch.cat([inputs.model(x) for x, _ in inputs.data.batches(BATCH)])}

    return Work(call)


CASES = (
    Case(
        "logit_scores/teacher",
        "every score from logits [100k, 1000] of student and teacher ([20k, 1000] quick), fp32",
        logits_of,
        Contender("fastqat", _scores),
        (Contender("x.clone()", _copy, agrees=()), Contender("eager formulas", _eager_scores)),
        moved=lambda inputs: inputs.student.nbytes + inputs.teacher.nbytes,
        goals=(Goal("eager formulas", 1 / 5),),
        seconds=8,
        tolerance=1e-4,
    ),
    Case(
        "scoring_pass/resnet20",
        "score_dataset, ResNet-20 W4A4, 2048 pictures of 32² (1024 quick)",
        pass_of,
        Contender("fastqat", _scoring_pass),
        (Contender("forward loop", _forward_loop, agrees=()),),
        goals=(Goal("forward loop", 1.05),),
        seconds=8,
    ),
)
