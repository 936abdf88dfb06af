"""The inner loops: one epoch of training, one pass of evaluation; no host sync per batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat._errors import FastqatError
from fastqat._progress import Bar

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


class EpochResult(NamedTuple):
    """Means over one pass: `loss` per sample, `accuracy` in [0, 1], `samples`, `steps`, `seconds`."""

    loss: float
    accuracy: float
    samples: int
    steps: int
    seconds: float


def cross_entropy(logits: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Cross-entropy to the labels: logits ``[B, K]``, y ``[B]`` → scalar, mean over the batch."""
    return F.cross_entropy(logits, y)


class Distillation:
    """``−Σ_m p_T,m log p_m``, mean over the batch, p_T the teacher's softmax at temperature 1 on the same augmented pictures.

    Args:
        teacher: put into eval mode; it gets no gradient.
    """

    def __init__(self, teacher: nn.Module):
        self.teacher = teacher.eval()

    def __call__(self, logits: Tensor, y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x).float().softmax(1)
        return F.cross_entropy(logits, target)


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """`x` in the memory layout of the model; only pictures ``[B, C, H, W]`` have one to choose."""
    return x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x


class _Tally:
    """Sums of one pass, kept on the device: nothing waits for it before `result`."""

    def __init__(self, bar: Bar | None):
        self.bar, self.start, self.samples, self.steps = bar, time.perf_counter(), 0, 0
        self.loss: Tensor | float = 0.0
        self.correct: Tensor | float = 0.0

    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """One batch; `loss` is its mean."""
        self.loss = self.loss + loss.detach() * len(y)
        self.correct = self.correct + (logits.detach().argmax(1) == y).sum()
        self.samples, self.steps = self.samples + len(y), self.steps + 1
        if self.bar is not None:
            self.bar.advance(len(y))

    def result(self) -> EpochResult:
        loss, correct, n = float(self.loss), float(self.correct), self.samples
        return EpochResult(loss / n, correct / n, n, self.steps, time.perf_counter() - self.start)


def cosine_factor(progress: float) -> float:
    """``½ (1 + cos π·progress)``: 1 at the start, 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_function: LossFunction,
    optimizer: torch.optim.Optimizer,
    set_lr: Callable[[int], None],
    *,
    amp: bool,
    channels_last: bool,
    bar: Bar,
) -> EpochResult:
    """One pass of gradient steps; ``set_lr(step)`` is called before each."""
    model.train()
    tally = _Tally(bar)
    for x, y in batches:
        x = laid_out(x, channels_last)
        set_lr(tally.steps)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            logits = model(x)
            loss = loss_function(logits.float(), y, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tally.add(loss, logits, y)
    return tally.result()


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, amp: bool, channels_last: bool, bar: Bar | None = None
) -> EpochResult:
    """Mean cross-entropy and accuracy of `model` in eval mode."""
    model.eval()
    tally = _Tally(bar)
    for x, y in batches:
        x = laid_out(x, channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            logits = model(x).float()
        tally.add(F.cross_entropy(logits, y), logits, y)
    return tally.result()


def check_finite(result: EpochResult, where: str) -> None:
    """Raise FastqatError when the loss is NaN or infinite."""
    if not math.isfinite(result.loss):
        raise FastqatError(f"training diverged: the loss of {where} is {result.loss}; lower the learning rate, or check the data for NaN")
