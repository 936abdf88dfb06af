"""Selection at ImageNet's size: every score of 1.28 million samples × 1000 classes and a balanced tenth of them, without the models.

The logits of student and teacher are made batch by batch, so that only the pass holds memory that grows with the data.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat.selection.scorer import score_dataset
from fastqat.selection.selecting import select

from .case import Case, Contender, Goal, Results, Size, Work

BATCH, CLASSES, POOL = 256, 1000, 16
SCORES = ["evs", "ds", "res", "acs", "loss", "entropy", "confidence", "margin"]


class MadeLogits(Dataset):
    """Batches ``((student, teacher), y)`` of logits: `POOL` random batches in turn, each time scaled anew so that no two are the same."""

    def __init__(self, size: int):
        generator = torch.Generator().manual_seed(0)
        self.size = size
        self.student = torch.randn(POOL, BATCH, CLASSES, generator=generator).mul_(3)
        self.teacher = torch.randn(POOL, BATCH, CLASSES, generator=generator).add_(self.student)
        self.labels = torch.randint(CLASSES, (size,), generator=generator)

    def __len__(self) -> int:
        return self.size

    def batches(self, batch_size: int) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        for number, y in enumerate(self.labels.split(batch_size)):
            scale = 1 + number / self.size
            student, teacher = (logits[number % POOL, : len(y)] * scale for logits in (self.student, self.teacher))
            yield (student, teacher), y


class Pick(nn.Module):
    """The model whose logits are the part called `index` of its input."""

    def __init__(self, index: int):
        super().__init__()
        self.index = index

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[self.index]


def _size(size: Size) -> int:
    return {"full": 1_281_167, "quick": 64_000, "small": 20_000}[size]


def _selected(data: MadeLogits) -> Results:
    table = score_dataset(Pick(0), data, SCORES, teacher=Pick(1), batch_size=BATCH, progress=False)
    return {"picked": select(table, 0.1, by="acs", balanced=True).indices}


def _fastqat(size: Size) -> Work:
    data = MadeLogits(_size(size))
    return Work(lambda: _selected(data), peak=lambda: _resident(size))


def _reading(size: Size) -> Work:
    data = MadeLogits(_size(size))

    def call() -> Results:
        return {"read": torch.tensor(sum(len(y) for _, y in data.batches(BATCH)))}

    return Work(call)


def _resident(size: Size) -> int:
    """Peak of the resident set of a process that does nothing else, interpreter and libraries included."""
    code = f"from {__name__} import print_resident; print_resident({size!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return int(told.stdout.split()[-1])


def print_resident(size: Size) -> None:
    """Run the selection once and print the most bytes that were resident."""
    import resource  # not on Windows

    _selected(MadeLogits(_size(size)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


READING = "reading alone"

CASES = (
    Case(
        "selection_pass/imagenet",
        f"{len(SCORES)} scores of logits [1.28M, 1000] made batch by batch, and a balanced topk of 10 % (64k quick); MiB resident",
        lambda size: size,
        Contender("fastqat", _fastqat),
        (Contender(READING, _reading, agrees=()),),
        moved=lambda size: 2 * 4 * CLASSES * _size(size),
        goals=(Goal(READING, 60, "beyond"), Goal(READING, 2 * 2**30, "bytes")),
        seconds=60,
    ),
)
