"""The divergence of feature maps in plain torch: the readable definition, in fp64 whatever the storage type, a few samples at a time.

Also the formulas as one would type them (`eager_feature_kl`), the baseline of the benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import arranged, as_map, empty_gradient

DISTRIBUTIONS = ("channel", "spatial", "flat")
_CHUNK = 2**20  # elements per fp64 temporary


class Found(NamedTuple):
    """What a forward pass returns.

    Attributes:
        row: KL(p ‖ t) of each distribution: ``[N]``, or ``[N, C]`` for ``"spatial"``.
        saved: what the backward needs of them. For ``"channel"`` the gradient of the row at every position of a channel, ``[N, C]``;
            else ``[4, *row.shape]``: the largest value of student and of teacher, the student's Σ e with e = exp(value − largest value),
            and log of that over the teacher's Σ e.
    """

    row: Tensor
    saved: Tensor


def allocate(student: Tensor, teacher: Tensor, distribution: str) -> Found:
    """Empty results: fp32, or fp64 where a map is fp64."""
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    samples, channels = student.shape[:2]
    row = student.new_empty((samples, channels) if distribution == "spatial" else (samples,), dtype=dtype)
    return Found(row, row.new_empty((samples, channels) if distribution == "channel" else (4, *row.shape)))


def forward(student: Tensor, teacher: Tensor, distribution: str) -> Found:
    """The rows and what is saved of them."""
    found = allocate(student, teacher, distribution)
    maps = arranged(student, teacher, distribution)
    saved = found.saved if distribution == "channel" else found.saved.view(4, *maps.student.shape[:2])
    row = found.row if distribution == "channel" else found.row.view(maps.student.shape[:2])
    for some in _chunks(maps.student):
        x, t = maps.student[some].double(), maps.teacher[some].double()
        if distribution == "channel":
            row[some], slope, _ = _divergence(x.mean(2), t.mean(2))
            saved[some] = slope / x.shape[2]
        else:
            row[some], _, statistics = _divergence(x, t)
            saved[:, some] = statistics.to(saved.dtype)
    return found


def backward(grad_row: Tensor, student: Tensor, teacher: Tensor, row: Tensor, saved: Tensor, distribution: str) -> Tensor:
    """grad_x of ``"spatial"`` and ``"flat"``: all is computed again, in fp64."""
    grad_x = empty_gradient(student)
    maps = arranged(student, teacher, distribution)
    target = arranged(grad_x, grad_x, distribution).student
    grad_row = grad_row.view(maps.student.shape[:2])
    for some in _chunks(maps.student):
        _, slope, _ = _divergence(maps.student[some].double(), maps.teacher[some].double())
        target[some] = (grad_row[some].unsqueeze(2) * slope).to(target.dtype)
    return grad_x


def _chunks(x: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK // x[0].numel()) if x.shape[0] else 1
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


def _divergence(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Over the last dimension: KL(p ‖ t), its gradient p (log p − log t − KL), and the four statistics of `Found`."""
    top, teacher_top = x.amax(-1, keepdim=True), t.amax(-1, keepdim=True)
    exps, teacher_exps = (x - top).exp(), (t - teacher_top).exp()
    total, teacher_total = exps.sum(-1, keepdim=True), teacher_exps.sum(-1, keepdim=True)
    p, q = exps / total, teacher_exps / teacher_total
    shift = total.log() - teacher_total.log()
    log_ratio = ((x - top) - (t - teacher_top)) - shift
    # Σ p u − p + q is Σ p u, without a term below 0: what errors of the normalisers add cancels.
    row = torch.where(p == 0, q, p * log_ratio - p + q).sum(-1, keepdim=True).clamp_min(0)
    slope = torch.where(p == 0, p, p * (log_ratio - row))
    statistics = torch.stack([each.squeeze(-1) for each in (top, teacher_top, total, shift)])
    return row.squeeze(-1), slope, statistics


def eager_feature_kl(student: Tensor, teacher: Tensor, distribution: str = "channel") -> Tensor:
    """The same rows as one would type them with autograd, in fp32: what `fastqat.feature_kl` is measured against."""
    x, t = as_map(student).float(), as_map(teacher).float()
    if distribution == "channel":
        x, t = x.mean(2), t.mean(2)
    if distribution == "flat":
        x, t = x.flatten(1), t.flatten(1)
    return F.kl_div(F.log_softmax(t, -1), F.log_softmax(x, -1), reduction="none", log_target=True).sum(-1)
