"""feature_kl in C++: the full contract of a row, 1e-5 of it + 1e-12, in every way a map is cut, and what the fast loops hand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

import fastqat as fq
from fastqat.testing import assert_same_bits, places

from .feature_kl_cases import DISTRIBUTIONS, found, row_values
from .levels import at_every_level

pytestmark = pytest.mark.skipif(("cpu", "cpu") not in places("feature_kl"), reason="fastqat._C is not built")

# Rows that are a tile, several, and of an odd length; rows that share one; lanes without a channel; several runs of channels.
SHAPES = ((3, 20, 16, 16), (1, 2, 97, 101), (2, 37, 7, 7), (2, 5, 2, 1), (1, 530, 3, 3), (1, 19, 23, 25))
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "with gaps": lambda x: torch.stack([x, x + 1]).transpose(0, 1)[:, 0],
    "channels-last with gaps": lambda x: torch.cat([x, x + 1], 1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
}
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True)
def on_the_cpu_backend() -> Iterator[None]:
    with fq.use_backend("cpu"):
        yield


def maps(shape: tuple[int, ...], distance: float, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """A student, and a teacher at this distance from it."""
    generator = torch.Generator().manual_seed(sum(shape))
    student = spread * torch.randn(shape, generator=generator)
    return student, student + distance * torch.randn(shape, generator=generator)


def exact(student: Tensor, teacher: Tensor, distribution: str) -> tuple[Tensor, Tensor]:
    """Rows, and gradients by the values of the softmax: in fp64, by a formula that loses no digits where the maps are close."""
    log_p, log_t = (row_values(x.double(), distribution).log_softmax(-1) for x in (student, teacher))
    p, u = log_p.exp(), log_p - log_t
    row = (p * (u + torch.expm1(-u))).sum(-1)
    return row, p * (u - row.unsqueeze(-1))


def gradient_of_values(grad: Tensor, distribution: str) -> Tensor:
    """That of the mean over positions is what all of them get together."""
    values = row_values(grad.double(), distribution)
    return values * grad[0, 0].numel() if distribution == "channel" else values


def assert_within_contract(row: Tensor, want: Tensor) -> None:
    error = (row.double() - want).abs() / (1e-5 * want + 1e-12)
    assert error.max() <= 1, f"a row is {float(error.max()):.3g} of the contract off"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_layout
@every_distribution
def test_rows_and_gradients_near_and_far(distribution: str, layout: str, shape: tuple[int, ...]) -> None:
    for distance in (10.0, 1.0, 0.1, 1e-3, 1e-5):
        student, teacher = (LAYOUTS[layout](x) for x in maps(shape, distance))
        row, grad = found(student, teacher, distribution)
        want, slope = exact(student, teacher, distribution)
        assert_within_contract(row, want)
        # Of a value, p and u - row; the latter cancels where u is near the row, so that its error is one of the largest.
        error = gradient_of_values(grad, distribution) - slope
        assert error.norm(dim=-1).le(3e-6 * slope.norm(dim=-1) + 1e-12).all()


@pytest.mark.parametrize("offset", [1e3, -3e4])
@every_distribution
def test_values_far_from_zero(distribution: str, offset: float) -> None:
    student, teacher = maps((2, 20, 24, 24), 0.1)
    for x, t in ((student + offset, teacher + offset), (student + offset, teacher)):
        row, _ = found(x, t, distribution)
        assert_within_contract(row, exact(x, t, distribution)[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_parts_of_a_row_that_differ_by_a_little(layout: str) -> None:
    """Most of the divergence lies between the parts: their totals must be right to the last digits."""
    student, _ = maps((1, 3, 128, 128), 0)
    for step in (1.0, 1e-2, 1e-4):
        teacher = student + step * (torch.arange(128.0) // 32).view(1, 1, 128, 1)
        x, t = (LAYOUTS[layout](each) for each in (student, teacher))
        for distribution in ("spatial", "flat"):
            assert_within_contract(found(x, t, distribution)[0], exact(x, t, distribution)[0])


@pytest.mark.parametrize(
    "dtypes", [(torch.float16, torch.float32), (torch.bfloat16, torch.float16), (torch.float32, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@every_distribution
def test_storage_types(distribution: str, layout: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    for shape in SHAPES:
        student, teacher = (LAYOUTS[layout](x).to(dtype) for x, dtype in zip(maps(shape, 0.5), dtypes, strict=True))
        row, grad = found(student, teacher, distribution)
        wide_row, wide_grad = found(student.float(), teacher.float(), distribution)
        assert_same_bits(row, wide_row)
        assert_same_bits(grad, wide_grad.to(student.dtype))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", [(1, 18, 20, 21), (2, 37, 7, 7)], ids=str)
def test_same_bits_for_threads_and_instruction_sets(shape: tuple[int, ...], layout: str) -> None:
    student, teacher = maps(shape, 0.3, 5)
    student[0, 1, 0, 0] = teacher[0, 2, 1, 1] = -torch.inf  # these rows are compared value by value
    for dtype in (torch.float32, torch.float16):
        x, t = (LAYOUTS[layout](each).to(dtype) for each in (student, teacher))
        for distribution in DISTRIBUTIONS:
            first, *others = at_every_level(partial(found, x, t, distribution))
            for other in others:
                for got, want in zip(other, first, strict=True):
                    assert_same_bits(got, want)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("side", [7, 90])
def test_rows_are_alone(layout: str, side: int) -> None:
    """What is not finite in one channel changes no other, whether they share a tile or not."""
    student, teacher = maps((2, 20, side, side), 1.0)
    want = found(LAYOUTS[layout](student), LAYOUTS[layout](teacher), "spatial")
    student[0, 3, 1, 2], student[1, 19, 0, 0], teacher[0, 8, 6, 6] = torch.nan, torch.inf, -torch.inf
    row, grad = found(LAYOUTS[layout](student), LAYOUTS[layout](teacher), "spatial")
    assert row[0, 3].isnan() and row[1, 19].isnan() and row[0, 8].isposinf()
    good = row.isfinite()
    assert good.sum() == 37
    assert_same_bits(row[good], want[0][good])
    assert_same_bits(grad[good], want[1][good])


def test_distances_beyond_fp32() -> None:
    """The differences of such values, and the sums of their squares, overflow."""
    x = torch.tensor([3e38, -3e38, 0.0, 1.0]).repeat(1, 1, 2000)
    t = torch.tensor([-3e38, 3e38, 1.0, 0.0]).repeat(1, 1, 2000)
    row, grad = found(torch.cat([x, x], 1), torch.cat([t, x], 1), "spatial")
    assert row[0, 0].isposinf() and row[0, 1] == 0  # the former is 6e38
    assert not grad[0, 1].any()
