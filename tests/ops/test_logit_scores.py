"""logit_scores: every backend against formulas in extended precision, and the same bits for any number of threads or instruction set."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import fastqat as fq
from fastqat import InputError, LogitScores, _backend, logit_scores
from fastqat._bench.case import needs_compiler
from fastqat.ops.logit_scores import op
from fastqat.ops.logit_scores.reference import eager_logit_scores
from fastqat.testing import assert_same_bits, places

from .levels import at_every_level
from .logit_cases import CASES, Oracle, all_fields, assert_same_scores, assert_within_contract, scored, some_targets

PLACES = places("logit_scores")
everywhere = pytest.mark.parametrize(("backend", "device"), PLACES)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = {1: 6, 2: 200, 10: 100, 1000: 24, 5000: 2, 100_000: 1}  # classes: samples
FEWER = {1: 6, 2: 40, 10: 40, 1000: 2, 5000: 1}  # for the interpreter; some cases have 100 000 classes there too
native = pytest.mark.skipif(("cpu", "cpu") not in PLACES, reason="fastqat._C is not built")


def assert_matches_oracle(got: LogitScores, logits: Tensor, targets: Tensor, teacher: Tensor) -> None:
    oracle = Oracle(logits)
    for name, want in oracle.scores(targets, Oracle(teacher)).items():
        assert_within_contract(name, getattr(got, name), want)
    assert got.correct.tolist() == (oracle.top == targets.numpy()).tolist()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rows_here(place: tuple[str, str]) -> dict[int, int]:
    return FEWER if place == ("triton", "cpu") else ROWS


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("backend", "device", "classes"), [(*place, classes) for place in PLACES for classes in rows_here(place)])
def test_accuracy(backend: str, device: str, classes: int, case: str) -> None:
    logits, teacher = CASES[case](rows_here((backend, device))[classes], classes)
    targets = some_targets(logits)
    with fq.use_backend(backend):
        assert_matches_oracle(scored(device, logits, targets, teacher), logits, targets, teacher)


@pytest.mark.parametrize("case", ["spread", "nearest"])
@pytest.mark.skipif(("triton", "cpu") not in PLACES, reason="Triton is not interpreted here")
def test_accuracy_of_interpreted_long_rows(case: str) -> None:
    logits, teacher = CASES[case](1, 100_000)
    targets = some_targets(logits)
    with fq.use_backend("triton"):
        assert_matches_oracle(scored("cpu", logits, targets, teacher), logits, targets, teacher)


@everywhere
def test_target_that_is_no_class_gives_nan_where_nothing_may_wait(backend: str, device: str) -> None:
    logits, targets = torch.randn(4, 3, device=device), torch.tensor([0, 3, -1, 2], device=device)
    forward = _backend._implementations["logit_scores"][backend].forward
    loss, evs, correct, *own = forward(logits, targets, None)
    want = forward(logits, targets.clamp(0, 2), None)
    assert loss.isnan().tolist() == evs.isnan().tolist() == [False, True, True, False]
    assert not correct[1:3].any()
    for values, expected in zip((loss[::3], evs[::3], correct[::3], *own), (*(each[::3] for each in want[:3]), *want[3:]), strict=True):
        assert_same_bits(values, expected)


@everywhere
def test_agreement_to_the_last_bit(backend: str, device: str) -> None:
    # One fp32 step apart: ds is 2e-11, far below the error of an fp32 normaliser.
    teacher = torch.tensor([[float.fromhex("-0x1.5e2be4p-10"), float.fromhex("-0x1.8c4d36p-11")]])
    logits, targets = torch.nextafter(teacher, torch.zeros_like(teacher)), torch.tensor([0])
    with fq.use_backend(backend):
        assert_matches_oracle(scored(device, logits, targets, teacher), logits, targets, teacher)


@pytest.mark.parametrize("teacher_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@everywhere
def test_storage_types(backend: str, device: str, dtype: torch.dtype, teacher_dtype: torch.dtype) -> None:
    logits, teacher = (torch.randn(40, 37) * 5).to(dtype), (torch.randn(40, 37) * 5).to(teacher_dtype)
    teacher[::2] = logits[::2].to(teacher_dtype)
    logits[0, :3] = torch.tensor([65504.0, 1e-7, -6e-8]).to(dtype)
    targets = some_targets(logits)
    with fq.use_backend(backend):
        assert_matches_oracle(scored(device, logits, targets, teacher), logits, targets, teacher)


@native
def test_exp_is_within_two_ulp() -> None:
    # Two classes, 0 and d, target 0: loss = log(1 + exp(d)). Inverting it in fp64 amplifies the rounding of the loss by at most 1.4.
    d = torch.cat([torch.linspace(-87, 0, 200_001), -torch.logspace(-12, 1.9, 100_001)])
    with fq.use_backend("cpu"):
        loss = logit_scores(torch.stack([torch.zeros_like(d), d], dim=1), torch.zeros(len(d), dtype=torch.int64)).loss
    error = loss.double().expm1() / d.double().exp() - 1
    assert error.abs().max() <= 2 * 2.0**-23 + 1.4 * 2.0**-24


def test_float64_takes_the_reference() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64)
    scores = logit_scores(logits, some_targets(logits), torch.randn(5, 7))
    assert {name: values.dtype for name, values in all_fields(scores)} == {
        name: torch.bool if name == "correct" else torch.float64 for name in LogitScores._fields
    }
    if ("cpu", "cpu") in PLACES:
        with fq.use_backend("cpu"), pytest.raises(RuntimeError, match="float64 runs on the reference backend only"):
            logit_scores(logits)


@everywhere
def test_only_what_was_asked(backend: str, device: str) -> None:
    logits, targets, teacher = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.randn(4, 3)
    own, with_targets, with_teacher = {"entropy", "confidence", "margin"}, {"loss", "evs", "correct"}, {"ds", "res", "kd"}
    with fq.use_backend(backend):
        everything = scored(device, logits, targets, teacher)
        for t, u in itertools.product([None, targets], [None, teacher]):
            scores = scored(device, logits, t, u)
            assert {name for name, _ in all_fields(scores)} == own | (with_targets if t is not None else set()) | (
                with_teacher if u is not None else set()
            )
            for name, values in all_fields(scores):
                assert_same_bits(values, getattr(everything, name), name)


@everywhere
def test_any_row_stride(backend: str, device: str) -> None:
    logits, teacher, targets = (t.to(device) for t in (torch.randn(9, 33), torch.randn(9, 33), torch.randint(0, 33, (9,))))
    wide = torch.full((9, 50), torch.nan, device=device)
    wide[:, 7:40] = logits
    wide_targets = torch.full((9, 2), -1, device=device)
    wide_targets[:, 1] = targets
    with fq.use_backend(backend):
        want = scored(device, logits, targets, teacher)
        assert_same_scores(scored(device, wide[:, 7:40], wide_targets[:, 1], teacher.t().contiguous().t()), want)
        one = scored(device, logits[:1].expand(9, 33), targets[:1].expand(9), teacher[:1].expand(9, 33))
        for name, values in all_fields(one):
            assert_same_bits(values, getattr(want, name)[:1].expand(9), name)


@everywhere
def test_row_stride_of_more_than_32_bits(backend: str, device: str, tmp_path: Path) -> None:
    if device != "cpu":
        pytest.skip("takes 4 GB of its memory")
    # A file with a hole: two rows 2³¹ elements apart that take no memory between them.
    size = 2**31 + 64
    with open(tmp_path / "hole", "wb") as handle:
        handle.truncate(2 * size)
    rows = torch.from_file(str(tmp_path / "hole"), shared=True, size=size, dtype=torch.float16).as_strided((2, 32), (2**31, 1))
    logits = rows.copy_(torch.randn(2, 32)).contiguous()
    with fq.use_backend(backend):
        assert_same_scores(scored(device, rows, None, logits), scored(device, logits, None, logits))


@pytest.mark.parametrize("classes", [1, 5])
@everywhere
def test_no_rows(backend: str, device: str, classes: int) -> None:
    with fq.use_backend(backend):
        scores = scored(device, torch.empty(0, classes), torch.empty(0, dtype=torch.int64), torch.empty(0, classes))
    assert [values.shape for values in scores] == [(0,)] * 9


@everywhere
def test_first_of_equal_maxima_is_the_prediction(backend: str, device: str) -> None:
    logits = torch.zeros(3, 40)
    logits[:, [7, 30]] = 2.0
    with fq.use_backend(backend):
        scores = scored(device, logits, torch.tensor([7, 30, 0]))
    assert scores.correct.tolist() == [True, False, False]
    assert scores.margin.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("classes", [1, 3, 40])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@everywhere
def test_nan_row_gives_nan_scores_and_no_other(backend: str, device: str, bad: float, classes: int) -> None:
    clean, teacher = torch.randn(6, classes), torch.randn(6, classes)
    logits, bad_teacher, targets = clean.clone(), teacher.clone(), torch.zeros(6, dtype=torch.int64)
    logits[1, 0] = logits[2, -1] = bad_teacher[4, -1] = bad
    with fq.use_backend(backend):
        scores, want = scored(device, logits, targets, bad_teacher), scored(device, clean, targets, teacher)
    for name, values in all_fields(scores):
        spoilt = [1, 2, 4] if name in ("ds", "res", "kd") else [1, 2]
        kept = [i for i in range(6) if i not in spoilt]
        assert_same_bits(values[kept], getattr(want, name)[kept], name)
        assert not values[spoilt].any() if name == "correct" else values[spoilt].isnan().all(), name


@everywhere
def test_all_classes_masked_gives_nan(backend: str, device: str) -> None:
    masked, targets = torch.full((2, 20), -torch.inf), torch.tensor([0, 19])
    with fq.use_backend(backend):
        scores = scored(device, masked, targets, masked)
    assert all(not values.any() if name == "correct" else values.isnan().all() for name, values in all_fields(scores))


@everywhere
def test_masked_classes_do_not_count(backend: str, device: str) -> None:
    logits, teacher, targets = torch.randn(8, 30), torch.randn(8, 30), torch.randint(0, 30, (8,))
    gap = torch.full((8, 25), -torch.inf)
    with fq.use_backend(backend):
        want = scored(device, logits, targets, teacher)
        got = scored(device, torch.cat([logits, gap], 1), targets, torch.cat([teacher, gap], 1))
        lost = scored(device, torch.cat([logits, gap], 1), targets + 25, torch.cat([teacher, gap + 1e9], 1).nan_to_num(neginf=0.0))
    for name, values in all_fields(got):
        torch.testing.assert_close(values, getattr(want, name), rtol=1e-6, atol=1e-12)
    assert lost.kd.isinf().all() and lost.ds.isfinite().all() and lost.res.isfinite().all()
    assert lost.loss.isinf().tolist() == (targets + 25 >= 30).tolist()


@native
@pytest.mark.parametrize(("rows", "classes"), [(1, 5), (100, 3), (37, 1000), (3, 40_000)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_threads_and_instruction_sets(dtype: torch.dtype, rows: int, classes: int) -> None:
    logits = (torch.randn(rows, classes) * 6).to(dtype)
    teacher, targets = (logits + torch.randn(rows, classes) * torch.rand(rows, 1) ** 4).to(dtype), some_targets(logits)
    for t in (targets, teacher.softmax(1)):
        results = at_every_level(lambda t=t: logit_scores(logits, t, teacher))
        for other in results[1:]:
            assert_same_scores(other, results[0])


def test_scores_are_detached() -> None:
    logits, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    for targets in (torch.tensor([0, 1, 2, 0]), torch.rand(4, 3, requires_grad=True)):
        assert not any(values.requires_grad for _, values in all_fields(logit_scores(logits, targets, teacher)))


def test_autocast_changes_nothing() -> None:
    logits, teacher = torch.randn(4, 30), torch.randn(4, 30)
    want = logit_scores(logits, None, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_scores(logit_scores(logits, None, teacher), want)


@everywhere
def test_opcheck(backend: str, device: str) -> None:
    logits, teacher, targets = torch.randn(6, 5), torch.randn(5, 6).bfloat16(), torch.randint(0, 5, (6,))
    logits, teacher, targets = logits.to(device), teacher.to(device).t(), targets.to(device)
    with fq.use_backend(backend):
        for t, u in itertools.product([None, targets, teacher.softmax(1)], [None, teacher]):
            torch.library.opcheck(op.logit_scores, (logits, t, u))


@pytest.mark.skipif(needs_compiler() is not None, reason=str(needs_compiler()))
def test_compiles_whole_and_once() -> None:
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(logit_scores, fullgraph=True, backend=counter)
    for n in (5, 9, 17):
        logits, teacher, targets = torch.randn(n, 7), torch.randn(n, 7), torch.randint(0, 7, (n,))
        for x in (logits, teacher, targets):
            torch._dynamo.mark_dynamic(x, 0)
        assert_same_scores(compiled(logits, targets, teacher), logit_scores(logits, targets, teacher))
    assert counter.frame_count == 1


def test_eager_formulas_agree() -> None:
    logits, teacher = torch.randn(20, 9), torch.randn(20, 9)
    targets = some_targets(logits)
    eager, got = eager_logit_scores(logits, targets, teacher), logit_scores(logits, targets, teacher)
    assert eager.keys() == {name for name, _ in all_fields(got)}
    for name, values in eager.items():
        torch.testing.assert_close(getattr(got, name), values, rtol=1e-4, atol=1e-6)


GOOD = torch.zeros(4, 3)
BAD_INPUT: dict[str, tuple[tuple[Any, ...], str]] = {
    "a list": (([[1.0, 2.0]], None, None), "logits is list; accepted: a tensor, such as torch.as_tensor"),
    "a list of targets": ((GOOD, [0, 1, 2, 0], None), "targets is list; accepted: a tensor"),
    "a teacher": ((GOOD, None, torch.nn.Linear(1, 1)), "teacher_logits is Linear; accepted: a tensor"),
    "one dimension": ((torch.zeros(3), None, None), r"logits has shape \[3\]; accepted: \[samples, classes\]"),
    "no classes": ((torch.zeros(3, 0), None, None), "at least one class"),
    "integer logits": ((torch.zeros(4, 3, dtype=torch.int64), None, None), "logits is torch.int64; accepted: float32"),
    "int32 targets": ((GOOD, torch.zeros(4, dtype=torch.int32), None), r"targets is torch.int32; accepted: int64.*targets.long\(\)"),
    "float targets": ((GOOD, torch.zeros(4), None), r"targets is torch.float32 \[4\]; accepted: .* \[4\] or .* probabilities \[4, 3\]"),
    "too few targets": ((GOOD, torch.zeros(3, dtype=torch.int64), None), r"targets is torch.int64 \[3\]; accepted: int64 .* \[4\]"),
    "too few probabilities": ((GOOD, torch.zeros(4, 2), None), r"targets is torch.float32 \[4, 2\]; accepted: .*\[4, 3\]"),
    "target too large": ((GOOD, torch.tensor([0, 2, 3, 7]), None), r"targets\[2\] is 3; accepted: class indices from 0 to 2"),
    "negative target": ((GOOD, torch.tensor([0, -1, 3, 2]), GOOD), r"targets\[1\] is -1; accepted"),
    "other classes": ((GOOD, None, torch.zeros(4, 5)), r"teacher_logits has shape \[4, 5\] and logits \[4, 3\]; accepted: equal shapes"),
    "other device": ((GOOD, None, torch.zeros(4, 3, device="meta")), "teacher_logits is on meta and logits on cpu; move both"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
@pytest.mark.parametrize("backend", [backend for backend, device in PLACES if device == "cpu"])
def test_bad_input(backend: str, case: str) -> None:
    arguments, message = BAD_INPUT[case]
    with fq.use_backend(backend), pytest.raises(InputError, match=message):
        logit_scores(*arguments)
