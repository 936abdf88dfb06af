"""Cases of a scoring pass over a data set, with and without the teacher's logits on disk, against loops that only run the models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastqat._tensor_data import TensorData
from fastqat.nn import calibrate, quantize
from fastqat.selection.scorer import score_dataset
from fastqat.selection.teacher import TeacherCache
from fastqat.train.models import make_model

from .case import Case, Contender, Goal, Results, Size, Work

BATCH = 256


@dataclass(frozen=True)
class Pass:
    """A quantized model, its float teacher, and a data set in memory."""

    model: nn.Module
    teacher: nn.Module
    data: TensorData


def pass_of(size: Size) -> Pass:
    """ResNet-20 at W4A4 over 32² pictures: 2048 for the record, 1024 quick; small: ResNet-8 over 32."""
    torch.manual_seed(0)
    samples = {"full": 2048, "quick": 1024, "small": 32}[size]
    data = TensorData(torch.randint(256, (samples, 3, 32, 32), dtype=torch.uint8), torch.arange(samples) % 10)
    teacher = make_model("resnet8" if size == "small" else "resnet20", 10, (3, 32, 32)).eval()
    model = quantize(teacher, "w4a4")
    return Pass(calibrate(model, [next(data.batches(BATCH))[0]]).eval(), teacher, data)


def _scores(inputs: Pass, names: list[str], teacher: TeacherCache | None) -> Results:
    table = score_dataset(inputs.model, inputs.data, names, teacher=teacher, batch_size=BATCH, progress=False)
    return {name: table[name] for name in table}


def _alone(inputs: Pass) -> Work:
    return Work(lambda: _scores(inputs, ["evs", "entropy"], None))


def _cached(*, warm: bool) -> Callable[[Pass], Work]:
    """Scores that compare with the teacher, whose logits are on the disk already, or are computed and written."""

    def make(inputs: Pass) -> Work:
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "teacher"

        def call(folder: tempfile.TemporaryDirectory[str] = folder) -> Results:  # the folder lives as long as this
            if not warm:
                path.unlink(missing_ok=True)
            return _scores(inputs, ["evs", "ds"], TeacherCache(inputs.teacher, path=path))

        return Work(call)

    return make


def _forwards(*, teacher: bool) -> Callable[[Pass], Work]:
    """The models over all batches, and nothing else."""

    def make(inputs: Pass) -> Work:
        models = [inputs.model, inputs.teacher] if teacher else [inputs.model]

        @torch.no_grad()
        def call() -> Results:
            outputs = [[model(x) for model in models] for x, _ in inputs.data.batches(BATCH)]
            return {"logits": torch.cat([logits for batch in outputs for logits in batch])}

        return Work(call)

    return make


STUDENT, BOTH = "forward loop", "forward loop of both"

CASES = (
    Case(
        "scoring_pass/resnet20",
        "score_dataset, ResNet-20 W4A4, 2048 pictures of 32² (1024 quick)",
        pass_of,
        Contender("fastqat", _alone),
        (Contender(STUDENT, _forwards(teacher=False), agrees=()),),
        goals=(Goal(STUDENT, 1.05),),
        seconds=8,
    ),
    Case(
        "scoring_pass/teacher_cold",
        "the same with a float teacher, whose logits are computed and written to disk",
        pass_of,
        Contender("fastqat", _cached(warm=False)),
        (Contender(BOTH, _forwards(teacher=True), agrees=()),),
        goals=(Goal(BOTH, 1.05),),
        seconds=12,
    ),
    Case(
        "scoring_pass/teacher_warm",
        "the same with the teacher's logits on disk",
        pass_of,
        Contender("fastqat", _cached(warm=True)),
        (Contender(STUDENT, _forwards(teacher=False), agrees=()),),
        goals=(Goal(STUDENT, 1.05),),
        seconds=8,
    ),
)
