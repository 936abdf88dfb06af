"""Feature maps as data, and the divergence of their distributions in fp64, as one would write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastqat as fq
from fastqat.testing import LAYOUTS, pairwise, with_layout

DISTRIBUTIONS = ("channel", "spatial", "flat")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VALUES = ("usual", "close", "wide", "extreme", "apart")
# One value, one position, odd sizes, many channels, rows of several parts in either layout.
SHAPES = ((1, 1, 1, 1), (2, 5, 1, 1), (3, 4, 5, 7), (2, 37, 3, 3), (1, 3, 70, 66), (2, 33, 17, 16), (1, 16, 24, 8))
CASES = pairwise(
    distribution=DISTRIBUTIONS,
    shape=SHAPES,
    layout=LAYOUTS,
    teacher_layout=LAYOUTS,
    dtype=DTYPES,
    teacher_dtype=DTYPES,
    values=VALUES,
)


def maps(shape: tuple[int, ...], values: str = "usual") -> tuple[Tensor, Tensor]:
    """Student and teacher in fp32: the same on every run."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    pairs = {
        "usual": (x, noise),
        "close": (x, x + 1e-3 * noise),
        "wide": (20 * x, 20 * noise),
        "extreme": (1e4 * x.sign() * (noise > 1), 1e4 * noise.sign()),
        "apart": (x + 900, noise - 300),
    }
    return pairs[values]


def of_case(case: dict[str, Any], device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Student and teacher of one of `CASES`."""
    student, teacher = maps(case["shape"], case["values"])
    return (
        with_layout(student.to(device, case["dtype"]), case["layout"]),
        with_layout(teacher.to(device, case["teacher_dtype"]), case["teacher_layout"]),
    )


def row_values(x: Tensor, distribution: str) -> Tensor:
    """The values of which the softmax is taken, over the last dimension."""
    if distribution == "flat":
        return x.flatten(1)
    x = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    return x.mean(2) if distribution == "channel" else x


@dataclass(frozen=True)
class Oracle:
    """Rows and gradients in fp64 by autograd, and the error that fp32 may make of both.

    The error of u = log(p / t) is some units in the last place of u and of what the softmax is taken of, relative to its largest value;
    for ``"channel"`` also that of the means, which are fp32 numbers of the size of the values. Where p is denormal in fp32 it may be 0.
    """

    row: Tensor
    grad: Tensor
    row_bound: Tensor
    grad_bound: Tensor

    @classmethod
    def of(cls, student: Tensor, teacher: Tensor, distribution: str, grad_row: Tensor) -> Oracle:
        x = student.detach().cpu().double().contiguous().requires_grad_()
        a, b = row_values(x, distribution), row_values(teacher.detach().cpu().double(), distribution)
        log_p, log_t = a.log_softmax(-1), b.log_softmax(-1)
        p, t, u = log_p.exp(), log_t.exp(), log_p - log_t
        row = (p * u).sum(-1)
        (grad,) = torch.autograd.grad(row, x, grad_row.cpu().double())
        with torch.no_grad():
            size = 2.0**-22 * max(float(student.abs().max()), float(teacher.abs().max())) if distribution == "channel" else 0.0
            apart = (u - row.unsqueeze(-1)).abs()
            row_bound = 1e-5 * row + 1e-9 + size * (p * apart + (p - t).abs()).sum(-1)
            log_size = 1 + u.abs() + row.unsqueeze(-1)
            slope_bound = p * (1e-5 * apart + (1e-6 + size) * log_size) + 2 * torch.finfo(torch.float32).smallest_normal * log_size
            bound = grad_row.cpu().double().abs().unsqueeze(-1) * slope_bound
            if distribution == "channel":
                bound = (bound / (student[0, 0].numel() or 1)).view(*bound.shape, *[1] * (student.dim() - 2)).expand_as(grad)
        return cls(row.detach(), grad, row_bound, bound.reshape(grad.shape))

    def check_row(self, got: Tensor) -> None:
        _assert_within(got, self.row, self.row_bound, "row")

    def check_grad(self, got: Tensor) -> None:
        """A gradient is rounded to the type of the map, which has steps of its own near 0."""
        limits = torch.finfo(got.dtype)
        _assert_within(got, self.grad, self.grad_bound + limits.eps * self.grad.abs() + limits.smallest_normal * limits.eps, "gradient")


def _assert_within(got: Tensor, want: Tensor, bound: Tensor, what: str) -> None:
    assert got.shape == want.shape, f"{what} has shape {list(got.shape)} instead of {list(want.shape)}"
    error = (got.detach().cpu().double() - want).abs()
    wrong = ~(error <= bound)
    if wrong.any():
        where = tuple(torch.nonzero(wrong)[0].tolist())
        raise AssertionError(f"{what}: {int(wrong.sum())} of {wrong.numel()} wrong, first at {where}: {got[where]} against {want[where]}")


def found(student: Tensor, teacher: Tensor, distribution: str, grad_row: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rows of `fastqat.feature_kl` and the gradient of the student, for a gradient of 1 of each row unless one is given."""
    leaf = student.detach().requires_grad_()
    row = fq.feature_kl(leaf, teacher, distribution=distribution)
    (grad,) = torch.autograd.grad(row, leaf, torch.ones_like(row) if grad_row is None else grad_row)
    return row.detach(), grad
