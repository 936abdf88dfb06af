"""logit_scores against class probabilities: every backend against formulas in extended precision."""

from __future__ import annotations

import pytest
import torch

import fastqat as fq
from fastqat import logit_scores
from fastqat.testing import assert_same_bits, places

from .logit_cases import ATOL, RTOL, SOFT, Oracle, all_fields, assert_same_scores, assert_within_contract, scored

everywhere = pytest.mark.parametrize(("backend", "device"), places("logit_scores"))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("case", SOFT)
@pytest.mark.parametrize("classes", [1, 2, 100, 5000])
@everywhere
def test_soft_targets(backend: str, device: str, classes: int, case: str) -> None:
    for scale in (4.0,) if (backend, device) == ("triton", "cpu") else (0.1, 4.0, 100.0):  # the interpreter is slow
        logits = torch.randn(3, classes) * scale
        targets = SOFT[case](logits)
        with fq.use_backend(backend):
            got = scored(device, logits, targets)
        oracle = Oracle(logits)
        for name, want in oracle.soft_scores(targets).items():
            assert_within_contract(name, getattr(got, name), want)
        assert got.correct.tolist() == (oracle.top == targets.numpy().argmax(1)).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@everywhere
def test_soft_targets_of_any_type_and_stride(backend: str, device: str, dtype: torch.dtype) -> None:
    logits, soft = torch.randn(9, 33), torch.randn(9, 50).softmax(1).to(dtype)
    with fq.use_backend(backend):
        got = scored(device, logits, soft[:, 7:40])
        assert_same_scores(scored(device, logits, soft[:, 7:40].float().t().contiguous().t()), got)
    with fq.use_backend("reference"):
        want = logit_scores(logits, soft[:, 7:40])
    for name, values in all_fields(got):
        torch.testing.assert_close(values, getattr(want, name), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, -1e-3])
@everywhere
def test_soft_target_that_is_none_gives_nan(backend: str, device: str, bad: float) -> None:
    logits, targets = torch.randn(4, 20), torch.rand(4, 20)
    spoilt = targets.clone()
    spoilt[1, 0] = spoilt[2, -1] = bad
    with fq.use_backend(backend):
        want, got = scored(device, logits, targets), scored(device, logits, spoilt)
    assert got.loss[1:3].isnan().all() and got.evs[1:3].isnan().all() and not got.correct[1:3].any()
    for name, values in all_fields(got):
        kept = slice(None) if name in ("entropy", "confidence", "margin") else slice(0, 4, 3)
        assert_same_bits(values[kept], getattr(want, name)[kept], name)


@everywhere
def test_soft_targets_of_masked_classes(backend: str, device: str) -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.5]] * 3)
    targets = torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.2, 0.0, 0.8]])
    with fq.use_backend(backend):
        got = scored(device, logits, targets)
    assert got.loss.isinf().tolist() == [False, True, False]
    assert got.evs.isfinite().all()
    assert got.correct.tolist() == [True, True, False]
