"""The inner loops: one epoch of training, one pass of evaluation; no host sync per batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat._distributed import summed
from fastqat._errors import FastqatError
from fastqat._progress import Bar
from fastqat.selection.policies import SelectionPolicy
from fastqat.train.batches import TrainBatch


class EpochResult(NamedTuple):
    """Means over one pass of all processes: `loss` per sample, `accuracy` in [0, 1], `samples`, `steps`, `seconds`.

    `clc_ratio` is λ L_CLC / L_KD of their sums over the pass; None without a layer correction, or where L_KD is 0.
    """

    loss: float
    accuracy: float
    samples: int
    steps: int
    seconds: float
    clc_ratio: float | None = None


class Forward(NamedTuple):
    """One batch: the student's `logits` and the teacher's, where it ran, ``[B, K]``; the `loss`, and its `parts` L_KD and λ L_CLC."""

    logits: Tensor
    taught: Tensor | None
    loss: Tensor
    parts: tuple[Tensor, Tensor] | None = None


class Objective:
    """What a batch minimises: the mean over its samples of weight · loss.

    The loss is the cross-entropy to the labels, ``−log p_y``; to `teacher` when `distil`: ``−Σ_m p_T,m log p_m`` with p_T the teacher's
    softmax at temperature 1 on the same augmented pictures.

    Args:
        teacher: put into eval mode; it gets no gradient. Without `distil` it is only asked where selection wants to know.
        distil: learn from the teacher in place of the labels.
    """

    def __init__(self, teacher: nn.Module | None = None, *, distil: bool = False):
        self.teacher, self.distil = None if teacher is None else teacher.eval(), distil

    @torch.no_grad()
    def teach(self, x: Tensor) -> Tensor:
        """The teacher's logits ``[B, K]`` of the pictures `x`, fp32."""
        assert self.teacher is not None
        return self.teacher(x).float()

    def forward(self, model: nn.Module, batch: TrainBatch, weights: Tensor | None, *, asks: bool) -> Forward:
        """Run `model` on `batch`, and the teacher where it distils or somebody `asks`; the samples have `weights` ``[B]``, None for 1."""
        logits = model(batch.x)
        taught = self.teach(batch.x) if self.distil or asks else None
        return Forward(logits, taught, self(logits.float(), batch.y, taught, weights))

    def state_dict(self) -> dict[str, Any]:
        """What the loss of the next batch depends on, beside the models."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""

    def __call__(self, logits: Tensor, y: Tensor, taught: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Scalar: logits ``[B, K]``, labels y ``[B]``, the teacher's logits ``[B, K]`` when it distils, weights ``[B]`` or None for 1."""
        target = taught.softmax(1) if self.distil and taught is not None else y
        if weights is None:
            return F.cross_entropy(logits, target)
        return (F.cross_entropy(logits, target, reduction="none") * weights).mean()


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """`x` in the memory layout of the model; only pictures ``[B, C, H, W]`` have one to choose."""
    return x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x


class _Tally:
    """Sums of one pass, kept on the device: nothing waits for it before `result`."""

    def __init__(self, bar: Bar | None):
        self.bar, self.start, self.samples, self.steps = bar, time.perf_counter(), 0, 0
        self.loss: Tensor | float = 0.0
        self.correct: Tensor | float = 0.0
        self.parts: Tensor | None = None

    def add(self, loss: Tensor, logits: Tensor, y: Tensor, counted: bool = True, parts: tuple[Tensor, Tensor] | None = None) -> None:
        """One batch; `loss` and `parts` are its means. One that is not counted is a step without samples."""
        self.steps += 1
        if not counted:
            return
        self.loss = self.loss + loss.detach() * len(y)
        self.correct = self.correct + (logits.detach().argmax(1) == y).sum()
        if parts is not None:
            sums = torch.stack(parts).detach() * len(y)
            self.parts = sums if self.parts is None else self.parts + sums
        self.samples += len(y)
        if self.bar is not None:
            self.bar.advance(len(y))

    def result(self) -> EpochResult:
        parts = [0.0, 0.0] if self.parts is None else self.parts.tolist()
        loss, correct, n, kd, correction = summed(float(self.loss), float(self.correct), self.samples, *parts)
        ratio = correction / kd if kd else None
        return EpochResult(loss / n, correct / n, int(n), self.steps, time.perf_counter() - self.start, ratio)


def cosine_factor(progress: float) -> float:
    """``½ (1 + cos π·progress)``: 1 at the start, 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def train_epoch(
    model: nn.Module,
    batches: Iterable[TrainBatch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    set_lr: Callable[[int], None],
    policy: SelectionPolicy,
    *,
    amp: bool,
    channels_last: bool,
    bar: Bar,
) -> EpochResult:
    """One pass of gradient steps with the loss weights of `policy`, which is shown the logits; ``set_lr(step)`` is called before each."""
    model.train()
    tally, sampler = _Tally(bar), policy.sampler
    asks = policy.observes_teacher
    for batch in batches:
        batch, y = batch._replace(x=laid_out(batch.x, channels_last)), batch.y
        weights = None if sampler.weights is None else sampler.loss_weights(batch.indices).to(y.device, non_blocking=True)
        set_lr(tally.steps)
        with torch.autocast(y.device.type, torch.bfloat16, enabled=amp):
            logits, taught, loss, parts = objective.forward(model, batch, weights, asks=asks)
        optimizer.zero_grad()
        (loss * batch.share).backward()
        optimizer.step()
        if batch.share > 0:
            policy.observe(batch.indices, logits, y, taught)
        tally.add(loss, logits, y, batch.share > 0, parts)
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
