"""Per-sample scores in plain torch: the readable definition, in fp64 whatever the storage type, a few rows at a time.

Also the formulas as one would type them (`eager_logit_scores`), the baseline of the benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 2**20  # elements per fp64 temporary


def field_names(has_targets: bool, has_teacher: bool) -> tuple[str, ...]:
    """The scores that these inputs give, in the order in which every backend returns them."""
    with_targets = ("loss", "evs", "correct") if has_targets else ()
    with_teacher = ("ds", "res", "kd") if has_teacher else ()
    return (*with_targets, "entropy", "confidence", "margin", *with_teacher)


def allocate(logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None) -> dict[str, Tensor]:
    """One empty ``[N]`` tensor per score: bool for `correct`, else fp32, or fp64 where an input is fp64."""
    wide = any(t is not None and t.dtype == torch.float64 for t in (logits, targets, teacher_logits))
    dtype = torch.float64 if wide else torch.float32
    return {
        name: logits.new_empty(logits.shape[0], dtype=torch.bool if name == "correct" else dtype)
        for name in field_names(targets is not None, teacher_logits is not None)
    }


def forward(logits: Tensor, targets: Tensor | None, teacher_logits: Tensor | None) -> list[Tensor]:
    """All scores in the order of `field_names`. A row whose target is none gets NaN and ``correct = False``."""
    out = allocate(logits, targets, teacher_logits)
    for rows in _chunks(*logits.shape):
        z = _Softmax(logits[rows])
        scores = z.own_scores()
        if targets is not None:
            scores |= (z.soft_target_scores if targets.is_floating_point() else z.target_scores)(targets[rows])
        if teacher_logits is not None:
            scores |= z.teacher_scores(_Softmax(teacher_logits[rows]))
        for name, values in scores.items():
            out[name][rows] = values.to(out[name].dtype)
    return list(out.values())


def _chunks(num_rows: int, num_classes: int) -> Iterator[slice]:
    step = max(1, _CHUNK // num_classes)
    return (slice(start, start + step) for start in range(0, num_rows, step))


def _times_log(weight: Tensor, log: Tensor) -> Tensor:
    """weight · log with 0 · (−inf) = 0."""
    return torch.where(weight == 0, torch.zeros_like(weight), weight * log)


class _Softmax:
    """Rows of logits relative to their largest one, which never enters a sum: `rest` keeps the digits of a small 1 − p."""

    def __init__(self, logits: Tensor) -> None:
        z = logits.double()
        self.top, self.top_index = z.max(dim=1, keepdim=True)
        self.shifted = z - self.top
        self.exps = self.shifted.exp()
        rest = self.exps.scatter(1, self.top_index, 0).sum(1)
        rest = rest + (self.top - self.top).squeeze(1)  # NaN where the largest is ±inf or NaN
        self.total = 1 + rest
        self.log_total = rest.log1p()

    def own_scores(self) -> dict[str, Tensor]:
        one_class = self.shifted.shape[1] == 1
        second = torch.full_like(self.total, -torch.inf) if one_class else self.shifted.topk(2, dim=1).values[:, 1]
        return {
            "entropy": self.log_total - _times_log(self.exps, self.shifted).sum(1) / self.total,
            "confidence": 1 / self.total,
            "margin": -second.expm1() / self.total,
        }

    def target_scores(self, targets: Tensor) -> dict[str, Tensor]:
        exists = (targets >= 0) & (targets < self.shifted.shape[1])
        column = torch.where(exists, targets, 0)[:, None]
        others = self.exps.scatter(1, column, 0)
        scores = {
            "loss": self.log_total - self.shifted.gather(1, column).squeeze(1),
            "evs": (others.sum(1).square() + others.square().sum(1)).sqrt() / self.total,
        }
        correct = exists & (self.top_index.squeeze(1) == targets) & ~self.total.isnan()
        return {name: torch.where(exists, values, torch.nan) for name, values in scores.items()} | {"correct": correct}

    def soft_target_scores(self, targets: Tensor) -> dict[str, Tensor]:
        y = targets.double()
        y = torch.where((y >= 0) & (y < torch.inf), y, torch.nan)
        evs = torch.linalg.vector_norm(self.exps / self.total[:, None] - y, dim=1)
        return {
            "loss": self.log_total * y.sum(1) - _times_log(y, self.shifted).sum(1),
            "evs": evs,
            "correct": (self.top_index.squeeze(1) == y.argmax(1)) & ~evs.isnan(),
        }

    def teacher_scores(self, teacher: _Softmax) -> dict[str, Tensor]:
        p, t = self.exps / self.total[:, None], teacher.exps / teacher.total[:, None]
        log_p = self.shifted - self.log_total[:, None]
        log_t = teacher.shifted - teacher.log_total[:, None]
        return {
            "ds": torch.linalg.vector_norm(p - t, dim=1),
            "res": torch.where(p > 0, p * (log_p - log_t), p * t).sum(1).clamp_min(0),
            "kd": -_times_log(t, log_p).sum(1),
        }


def eager_logit_scores(logits: Tensor, targets: Tensor | None = None, teacher_logits: Tensor | None = None) -> dict[str, Tensor]:
    """The same scores as one would type them in the storage type: what `fastqat.logit_scores` is measured against."""
    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp()
    top = p.topk(min(2, p.shape[1]), dim=1).values
    scores = {"entropy": -(p * log_p).sum(1), "confidence": top[:, 0], "margin": top[:, 0] - (top[:, 1] if p.shape[1] > 1 else 0)}
    if targets is not None:
        scores["loss"] = F.nll_loss(log_p, targets, reduction="none")
        scores["evs"] = p.scatter_add(1, targets[:, None], -torch.ones_like(p[:, :1])).norm(dim=1)
        scores["correct"] = logits.argmax(1) == targets
    if teacher_logits is not None:
        log_t = F.log_softmax(teacher_logits, dim=1)
        t = log_t.exp()
        scores["ds"] = (p - t).norm(dim=1)
        scores["res"] = F.kl_div(log_t, log_p, reduction="none", log_target=True).sum(1)
        scores["kd"] = -(t * log_p).sum(1)
    return scores
