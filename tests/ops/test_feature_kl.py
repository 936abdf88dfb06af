"""feature_kl: every backend against autograd in fp64, over layouts, types, sizes and hard values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastqat as fq
from fastqat import InputError
from fastqat.ops.feature_kl import launch, reference
from fastqat.ops.feature_kl.reference import eager_feature_kl
from fastqat.testing import assert_same_bits, places

from .feature_kl_cases import CASES, DISTRIBUTIONS, Oracle, found, maps, of_case, row_values

PLACES = places("feature_kl")
everywhere = pytest.mark.parametrize(("backend", "device"), PLACES)
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def skip_bfloat16_in_the_interpreter(backend: str, device: str, *tensors: Tensor) -> None:
    if (backend, device) == ("triton", "cpu") and any(x.dtype == torch.bfloat16 for x in tensors):
        pytest.skip("Triton's interpreter has no bfloat16")


def rows_like(student: Tensor, distribution: str) -> Tensor:
    """A gradient for each row: of both signs, one of them 0."""
    shape = student.shape[: 2 if distribution == "spatial" else 1]
    return torch.linspace(-1, 2, max(shape.numel(), 1), device=student.device)[: shape.numel()].view(shape)


@pytest.mark.parametrize("case", CASES, ids=str)
@everywhere
def test_equals_autograd(backend: str, device: str, case: dict[str, Any]) -> None:
    student, teacher = of_case(case, device)
    skip_bfloat16_in_the_interpreter(backend, device, student, teacher)
    grad_row = rows_like(student, case["distribution"])
    with fq.use_backend(backend):
        row, grad = found(student, teacher, case["distribution"], grad_row)
    assert row.dtype == torch.float32 and grad.dtype == student.dtype
    assert (row >= 0).all()
    oracle = Oracle.of(student, teacher, case["distribution"], grad_row)
    oracle.check_row(row)
    oracle.check_grad(grad)


@every_distribution
def test_float64_takes_the_reference(distribution: str) -> None:
    student, teacher = (x.double() for x in maps((2, 3, 4, 5)))
    for wide in ((student, teacher), (student.float(), teacher), (student, teacher.float())):
        row, grad = found(*wide, distribution)
        assert row.dtype == torch.float64 and grad.dtype == wide[0].dtype
        want = Oracle.of(*wide, distribution, torch.ones_like(row))
        torch.testing.assert_close(row, want.row, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(grad.double(), want.grad, rtol=1e-6 if grad.dtype == torch.float32 else 1e-10, atol=1e-15)
    for backend, device in PLACES:
        if backend != "reference" and device == "cpu":
            with fq.use_backend(backend), pytest.raises(RuntimeError, match="float64 runs on the reference backend only"):
                fq.feature_kl(student, teacher, distribution=distribution)


@every_distribution
def test_the_reference_passes_gradcheck(distribution: str) -> None:
    student, teacher = (x.double() for x in maps((2, 3, 2, 2)))
    assert torch.autograd.gradcheck(lambda x: fq.feature_kl(x, teacher, distribution=distribution), student.requires_grad_())


@every_distribution
def test_the_baseline_of_the_benchmark_computes_the_same(distribution: str) -> None:
    student, teacher = maps((2, 3, 4, 5))
    torch.testing.assert_close(eager_feature_kl(student, teacher, distribution), fq.feature_kl(student, teacher, distribution=distribution))


@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 9), (2, 3, 2, 3, 4)])
@every_distribution
@everywhere
def test_any_number_of_positions(backend: str, device: str, distribution: str, shape: tuple[int, ...]) -> None:
    student, teacher = (x.to(device) for x in maps(shape))
    with fq.use_backend(backend):
        if len(shape) == 2 and distribution == "spatial":
            with pytest.raises(InputError, match="without positions, distribution='channel' or 'flat'"):
                fq.feature_kl(student, teacher, distribution=distribution)
            return
        row, grad = found(student, teacher, distribution)
        oracle = Oracle.of(student, teacher, distribution, torch.ones_like(row))
        oracle.check_row(row)
        oracle.check_grad(grad)
        if len(shape) > 2:
            last = [x.movedim(1, -1).contiguous().movedim(-1, 1) for x in (student, teacher)]
            row, grad = found(*last, distribution)
            oracle.check_row(row)
            oracle.check_grad(grad)


@pytest.mark.parametrize("channels_last", [False, True])
@every_distribution
@everywhere
def test_equal_maps_give_zeros(backend: str, device: str, distribution: str, channels_last: bool) -> None:
    student = 30 * maps((2, 20, 17, 17))[0].to(device)
    student = student.contiguous(memory_format=torch.channels_last) if channels_last else student
    with fq.use_backend(backend):
        row, grad = found(student, student.clone(), distribution)
    assert not row.any() and not grad.any()


@every_distribution
@everywhere
def test_close_maps_lose_no_digits(backend: str, device: str, distribution: str) -> None:
    student, _ = (x.to(device) for x in maps((2, 20, 9, 9)))
    teacher = student + 1e-3 * torch.randn(student.shape, generator=torch.Generator().manual_seed(0)).to(device)
    with fq.use_backend(backend):
        row, _ = found(student, teacher, distribution)
    want = Oracle.of(student, teacher, distribution, torch.ones_like(row)).row
    torch.testing.assert_close(row.cpu().double(), want, rtol=3e-3, atol=0)  # 1e-7 of log p beside differences of 1e-4 to 1e-3


@everywhere
def test_values_near_the_end_of_fp32(backend: str, device: str) -> None:
    student = torch.tensor([[[3e38, -3e38, 0.0, 1.0]], [[2.0, 1.0, 3e38, 3e38]]], device=device)
    teacher = torch.tensor([[[1.0, 2.0, -3e38, -3e38]], [[-3e38, 3e38, 1e38, 1e38]]], device=device)
    with fq.use_backend(backend):
        for distribution in ("spatial", "flat"):
            row, grad = found(student, teacher, distribution)
            want = Oracle.of(student, teacher, distribution, torch.ones_like(row))
            torch.testing.assert_close(row.cpu(), want.row.float(), rtol=1e-6, atol=0)
            assert not grad.isnan().any()


@everywhere
def test_rows_without_a_distribution_are_nan_and_no_others(backend: str, device: str) -> None:
    student, teacher = (x.to(device) for x in maps((6, 3, 20)))
    for distribution in ("spatial", "flat"):
        with fq.use_backend(backend):
            want, want_grad = found(student, teacher, distribution)
            bad, bad_teacher = student.clone(), teacher.clone()
            bad[1, 1, 3], bad[2, 2, 0], bad[3] = torch.nan, torch.inf, -torch.inf
            bad_teacher[4, 1, 5], bad_teacher[5] = torch.nan, -torch.inf
            row, grad = found(bad, bad_teacher, distribution)
        assert row.isnan().sum() == (9 if distribution == "spatial" else 5)
        good = ~row.isnan()
        assert_same_bits(row[good], want[good])
        assert_same_bits(grad[good], want_grad[good])
        wrong = [(1, 1), (3, 0), (4, 1)] if distribution == "spatial" else [1, 3, 4]
        assert all(grad[at].isnan().any() for at in wrong)


@pytest.mark.parametrize("length", [20, 5000])
@everywhere
def test_excluded_values(backend: str, device: str, length: int) -> None:
    student, teacher = (x.to(device) for x in maps((1, 4, length)))
    student[0, 0, 3], teacher[0, 1, 3] = -torch.inf, -torch.inf
    student[0, 2, : length // 2] = teacher[0, 2, : length // 2] = -torch.inf  # whole parts of a long row
    teacher[0, 3, length // 2 :] = -torch.inf
    with fq.use_backend(backend):
        row, grad = found(student, teacher, "spatial")
    assert row.isposinf().tolist() == [[False, True, False, True]]
    for channel in (0, 2):
        log_p, log_t = (x[0, channel].cpu().double().log_softmax(0) for x in (student, teacher))
        p = log_p.exp()
        want = torch.where(p > 0, p * (log_p - log_t), 0.0).sum()
        torch.testing.assert_close(row[0, channel].cpu().double(), want, rtol=1e-5, atol=1e-9)
        slope = torch.where(p > 0, p * (log_p - log_t - want), 0.0)
        torch.testing.assert_close(grad[0, channel].cpu().double(), slope, rtol=1e-4, atol=1e-8)


@every_distribution
@everywhere
def test_no_samples(backend: str, device: str, distribution: str) -> None:
    with fq.use_backend(backend):
        row, grad = found(torch.empty(0, 3, 4, 5, device=device), torch.empty(0, 3, 4, 5, device=device), distribution)
    assert row.shape == ((0, 3) if distribution == "spatial" else (0,)) and grad.shape == (0, 3, 4, 5)


@every_distribution
@everywhere
def test_everything_is_written_and_twice_alike(backend: str, device: str, distribution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = (x.to(device) for x in maps((2, 20, 17, 17)))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = student.contiguous(memory_format=layout)
        with fq.use_backend(backend):
            want = found(x, teacher, distribution)
            with monkeypatch.context() as patch:
                poisoned(patch)
                for got, expected in zip(found(x, teacher, distribution), want, strict=True):
                    assert_same_bits(got, expected)


def poisoned(patch: pytest.MonkeyPatch) -> None:
    """What the kernels are given to write into holds NaN."""
    new_empty = Tensor.new_empty
    patch.setattr(Tensor, "new_empty", lambda x, *args, **options: new_empty(x, *args, **options).fill_(torch.nan))


@pytest.mark.parametrize("channels_last", [False, True])
@every_distribution
@pytest.mark.skipif(not any(backend == "triton" for backend, _ in PLACES), reason="Triton is not here")
def test_parts_of_parts(distribution: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tiles: every row has many parts, more than the second stage takes at a time."""
    monkeypatch.setattr(launch, "ELEMENTS", 128)
    monkeypatch.setattr(launch, "WHOLE", 4)
    monkeypatch.setattr(launch, "FINISHED", 16)
    device = next(device for backend, device in PLACES if backend == "triton")
    student, teacher = (x.to(device) for x in maps((1, 3, 15, 12), "wide"))
    student = student.contiguous(memory_format=torch.channels_last) if channels_last else student
    with fq.use_backend("triton"):
        row, grad = found(student, teacher, distribution)
        assert not any(each.any() for each in found(student, student.clone(), distribution))
    oracle = Oracle.of(student, teacher, distribution, torch.ones_like(row))
    oracle.check_row(row)
    oracle.check_grad(grad)


def test_the_formulas_by_hand() -> None:
    student, teacher = torch.tensor([[[0.0, 2.0], [4.0, 2.0]]]), torch.zeros(1, 2, 2)
    p = torch.tensor([1.0, 3.0]).softmax(0)
    torch.testing.assert_close(fq.feature_kl(student, teacher), (p * (p * 2).log()).sum().unsqueeze(0))
    for distribution, values in (("spatial", row_values(student, "spatial")), ("flat", row_values(student, "flat"))):
        p = values.softmax(-1)
        want = (p * (p * values.shape[-1]).log()).sum(-1)
        torch.testing.assert_close(fq.feature_kl(student, teacher, distribution=distribution), want)


def test_the_reference_works_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = maps((5, 3, 4, 4))
    with fq.use_backend("reference"):
        for distribution in DISTRIBUTIONS:
            want = found(student, teacher, distribution)
            monkeypatch.setattr(reference, "_CHUNK", 100)
            for got, expected in zip(found(student, teacher, distribution), want, strict=True):
                assert_same_bits(got, expected)
            monkeypatch.undo()
