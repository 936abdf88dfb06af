"""Logits that are hard to score, their scores in numpy's longest float, and how scores are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fastqat import LogitScores, logit_scores
from fastqat.testing import assert_same_bits

RTOL, ATOL = 1e-5, 1e-12  # the contract; one rounding to fp32 is 6e-8 of it

# Student and teacher logits [n, c], by what is hard about them.
CASES: dict[str, Callable[[int, int], tuple[Tensor, Tensor]]] = {
    "spread": lambda n, c: (torch.randn(n, c) * 3, torch.randn(n, c) * 3),
    "peaked": lambda n, c: (torch.randn(n, c) * 100, torch.randn(n, c) * 100),
    "extreme": lambda n, c: (torch.rand(n, c) * 2e4 - 1e4, torch.rand(n, c) * 2e4 - 1e4),
    "flat": lambda n, c: (torch.randn(n, c) * 1e-4, torch.randn(n, c) * 1e-4),
    "near": lambda n, c: _near(torch.randn(n, c) * 4, 1e-2),
    "nearer": lambda n, c: _near(torch.randn(n, c) * 4, 1e-4),
    "nearest": lambda n, c: _near(torch.randn(n, c) * 4, 1e-6),
    "near_certain": lambda n, c: _near(_certain(n, c), 1e-2),
    "nearest_certain": lambda n, c: _near(_certain(n, c), 1e-6),
    "near_shifted": lambda n, c: _near(torch.randn(n, c) * 4, 1e-3, shift=100.0),
    "one_outlier": lambda n, c: (torch.zeros(n, c), torch.full((n, c), 1e-6).index_fill(1, torch.tensor([0]), 0.1)),
    "equal": lambda n, c: _near(torch.randn(n, c) * 4, 0.0),
    "equal_shifted": lambda n, c: _near((torch.randn(n, c) * 4).bfloat16().float(), 0.0, shift=8.0),
    "ties": lambda n, c: (torch.randint(0, 3, (n, c)).float(), torch.randint(0, 3, (n, c)).float()),
}


def _near(teacher: Tensor, distance: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    return teacher + shift + distance * torch.randn_like(teacher), teacher


def _certain(n: int, c: int) -> Tensor:
    return (torch.randn(n, c) * 4).index_add(1, torch.tensor([0]), torch.full((n, 1), 30.0))


def some_targets(logits: Tensor) -> Tensor:
    """The prediction in every second row, any class elsewhere."""
    targets = torch.randint(0, logits.shape[1], logits.shape[:1])
    targets[::2] = logits.argmax(1)[::2]
    return targets


# Soft targets [n, c] for logits [n, c], by what is hard about them.
SOFT: dict[str, Callable[[Tensor], Tensor]] = {
    "smoothed": lambda z: one_hot(z) * 0.9 + 0.1 / z.shape[1],
    "mixed": lambda z: 0.7 * one_hot(z) + 0.3 * one_hot(z.flip(0)),
    "one_hot": lambda z: one_hot(z),
    "learned": lambda z: z.double().softmax(1).float(),
    "certain": lambda z: torch.nn.functional.one_hot(z.argmax(1), z.shape[1]).float(),
    "not_normalised": lambda z: torch.rand(z.shape) * 3,
    "nothing": torch.zeros_like,
}


def one_hot(logits: Tensor) -> Tensor:
    """`some_targets` as rows of zeros and a one."""
    return torch.nn.functional.one_hot(some_targets(logits), logits.shape[1]).float()


class Oracle:
    """The formulas in numpy's longest float, on the exact values of the logits."""

    def __init__(self, logits: Tensor) -> None:
        z = logits.double().numpy().astype(np.longdouble)
        self.rows = np.arange(len(z))
        self.top = z.argmax(1)
        self.shifted = z - z.max(1, keepdims=True)
        exps = np.exp(self.shifted)
        rest = exps.copy()
        rest[self.rows, self.top] = 0
        self.log_total = np.log1p(rest.sum(1))
        self.p = exps / exps.sum(1, keepdims=True)

    def scores(self, targets: Tensor, teacher: Oracle) -> dict[str, np.ndarray]:
        others, second = self.p.copy(), self.shifted.copy()
        others[self.rows, targets.numpy()] = 0
        second[self.rows, self.top] = -np.inf
        log_ratio = self.shifted - self.log_total[:, None] - (teacher.shifted - teacher.log_total[:, None])
        return {
            "loss": self.log_total - self.shifted[self.rows, targets.numpy()],
            "evs": np.sqrt(others.sum(1) ** 2 + (others**2).sum(1)),
            "entropy": self.log_total - (self.p * self.shifted).sum(1),
            "confidence": self.p.max(1),
            "margin": -np.expm1(second.max(1)) * self.p.max(1),
            "ds": np.sqrt(((self.p - teacher.p) ** 2).sum(1)),
            "res": (self.p * log_ratio - self.p + teacher.p).sum(1),
            "kd": self.log_total - (teacher.p * self.shifted).sum(1),
        }

    def soft_scores(self, targets: Tensor) -> dict[str, np.ndarray]:
        """loss and evs against probabilities."""
        y = targets.double().numpy().astype(np.longdouble)
        log_p = self.shifted - self.log_total[:, None]
        return {"loss": -np.where(y == 0, 0, y * log_p).sum(1), "evs": np.sqrt(((self.p - y) ** 2).sum(1))}


def assert_within_contract(name: str, values: Tensor, want: np.ndarray) -> None:
    assert values.dtype == torch.float32
    excess = np.abs(values.numpy() - want) - (RTOL * np.abs(want) + ATOL)
    worst = int(excess.argmax())
    assert excess[worst] <= 0, f"{name}[{worst}] is {values[worst]}, not {want[worst]}"


def scored(device: str, logits: Tensor, targets: Tensor | None = None, teacher: Tensor | None = None) -> LogitScores:
    """`logit_scores` computed on `device`, its results on the CPU."""
    scores = logit_scores(*(None if t is None else t.to(device) for t in (logits, targets, teacher)))
    return LogitScores(*(None if values is None else values.cpu() for values in scores))


def all_fields(scores: LogitScores) -> Iterator[tuple[str, Tensor]]:
    return ((name, values) for name, values in scores._asdict().items() if values is not None)


def assert_same_scores(got: LogitScores, want: LogitScores) -> None:
    for (name, a), (_, b) in zip(all_fields(got), all_fields(want), strict=True):
        assert_same_bits(a, b, name)
