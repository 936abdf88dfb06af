"""feature_kl inside torch: layouts without copies, what is saved, opcheck, compile, autocast, torch.func, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import fastqat as fq
from fastqat import InputError
from fastqat.ops.feature_kl import op
from fastqat.testing import assert_same_bits, places

from .feature_kl_cases import DISTRIBUTIONS, Oracle, found, maps
from .levels import at_every_level

PLACES = places("feature_kl")
everywhere = pytest.mark.parametrize(("backend", "device"), PLACES)
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
native = pytest.mark.skipif(("cpu", "cpu") not in PLACES, reason="fastqat._C is not built")
SHAPE = (2, 6, 5, 4)


class Copies(TorchDispatchMode):
    """Counts copies of tensors with `size` elements."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            self.count += args[0].numel() == self.size
        return function(*args, **(kwargs or {}))


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "some of the samples": lambda x: x.repeat_interleave(2, 0)[::2],
    "tokens": lambda x: x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@every_distribution
@pytest.mark.parametrize("backend", [backend for backend, device in PLACES if device == "cpu" and backend != "reference"])
def test_dense_maps_are_not_copied(backend: str, distribution: str, layout: str) -> None:
    student, teacher = (LAYOUTS[layout](x) for x in maps(SHAPE))
    with fq.use_backend(backend), torch.no_grad():
        with Copies(student.numel()) as copies:
            row, saved = op.feature_kl(student, teacher, distribution)
            if distribution != "channel":
                op.feature_kl_backward(torch.ones_like(row), student, teacher, row, saved, distribution)
        assert copies.count == 0
        torch.testing.assert_close(row, fq.feature_kl(student.contiguous(), teacher.contiguous(), distribution=distribution))


@every_distribution
@everywhere
def test_the_gradient_lies_as_the_student_does(backend: str, device: str, distribution: str) -> None:
    if distribution == "channel":
        pytest.skip("its gradient is an expanded tensor")
    for layout, make in LAYOUTS.items():
        student, teacher = (make(x.to(device)) for x in maps(SHAPE))
        with fq.use_backend(backend):
            _, grad = found(student, teacher, distribution)
        assert grad.stride() == (student.contiguous() if layout == "some of the samples" else student).stride()


@everywhere
def test_channel_keeps_no_map_and_writes_none(backend: str, device: str) -> None:
    student, teacher = (x.to(device).requires_grad_(i == 0) for i, x in enumerate(maps(SHAPE)))
    kept: list[Tensor] = []
    with fq.use_backend(backend), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        row = fq.feature_kl(student, teacher)
    assert [t.numel() for t in kept] == [SHAPE[0] * SHAPE[1]]
    with torch.no_grad():
        student.zero_()  # as an in-place activation may
    (grad,) = torch.autograd.grad(row.sum(), student)
    assert grad.stride()[2:] == (0, 0) and grad.shape == SHAPE


@pytest.mark.parametrize("distribution", ["spatial", "flat"])
def test_the_backward_sees_a_map_that_was_overwritten(distribution: str) -> None:
    student, teacher = maps(SHAPE)
    row = fq.feature_kl(student.requires_grad_(), teacher, distribution=distribution)
    with torch.no_grad():
        student.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        row.sum().backward()


@native
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 300), (1, 3, 9000), (9, 70, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_same_bits_for_threads_and_instruction_sets(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    student, teacher = (x.to(dtype) for x in maps(shape))
    for distribution in DISTRIBUTIONS:
        for layout in (lambda x: x, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)):
            results = at_every_level(lambda layout=layout, name=distribution: found(layout(student), layout(teacher), name), threads=(1, 2))
            for other in results[1:]:
                for got, want in zip(other, results[0], strict=True):
                    assert_same_bits(got, want)


@everywhere
def test_strides_of_more_than_32_bits(backend: str, device: str, tmp_path: Path) -> None:
    if device != "cpu":
        pytest.skip("takes 4 GB of its memory")
    # A file with a hole: two samples 2³¹ elements apart that take no memory between them.
    size = 2**31 + 64
    with open(tmp_path / "hole", "wb") as handle:
        handle.truncate(2 * size)
    student = torch.from_file(str(tmp_path / "hole"), shared=True, size=size, dtype=torch.float16).as_strided((2, 4, 8), (2**31, 8, 1))
    teacher = maps((2, 4, 8))[1].half()
    student.copy_(maps((2, 4, 8))[0])
    with fq.use_backend(backend):
        for distribution in DISTRIBUTIONS:
            for got, want in zip(found(student, teacher, distribution), found(student.contiguous(), teacher, distribution), strict=True):
                assert_same_bits(got, want)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed", "empty"])
@every_distribution
@everywhere
def test_opcheck(backend: str, device: str, distribution: str, layout: str) -> None:
    make = {**LAYOUTS, "transposed": lambda x: x.transpose(2, 3), "empty": lambda x: x[:0]}[layout]
    student, teacher = (make(x.to(device)) for x in maps(SHAPE))
    with fq.use_backend(backend):
        torch.library.opcheck(op.feature_kl, (student, teacher.half(), distribution))
        if distribution != "channel":
            row, saved = op.feature_kl(student, teacher, distribution)
            torch.library.opcheck(op.feature_kl_backward, (torch.ones_like(row), student, teacher, row, saved, distribution))


@pytest.mark.parametrize("channels_last", [False, True])
@every_distribution
def test_compiles_whole_and_once(distribution: str, channels_last: bool) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, t: fq.feature_kl(2 * x, t, distribution=distribution), fullgraph=True, backend=counter)
    for n in (3, 5, 9):
        student, teacher = maps((n, 6, 5, 4))
        student = student.contiguous(memory_format=torch.channels_last) if channels_last else student
        want_row, want = found(2 * student, teacher, distribution)
        for x in (student.requires_grad_(), teacher):
            torch._dynamo.mark_dynamic(x, 0)
        row = compiled(student, teacher)
        (grad,) = torch.autograd.grad(row.sum(), student)
        assert_same_bits(row.detach(), want_row)
        torch.testing.assert_close(grad, 2 * want, rtol=1e-6, atol=0)
    assert counter.frame_count == 1


@every_distribution
def test_autocast_changes_nothing(distribution: str) -> None:
    student, teacher = maps(SHAPE)
    want = found(student, teacher, distribution)
    with torch.autocast("cpu", torch.bfloat16):
        for got, expected in zip(found(student, teacher, distribution), want, strict=True):
            assert_same_bits(got, expected)


@every_distribution
def test_gradients_by_torch_func(distribution: str) -> None:
    student, teacher = maps(SHAPE)
    got = torch.func.grad(lambda x: fq.feature_kl(x, teacher, distribution=distribution).sum())(student)
    assert_same_bits(got, found(student, teacher, distribution)[1])


@every_distribution
def test_a_second_derivative_is_refused(distribution: str) -> None:
    student, teacher = maps(SHAPE)
    row = fq.feature_kl(student.requires_grad_(), teacher, distribution=distribution)
    (grad,) = torch.autograd.grad(row.sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(grad.square().sum(), student)


@every_distribution
def test_the_gradient_of_a_mean_over_rows_arrives_expanded(distribution: str) -> None:
    student, teacher = maps(SHAPE)
    row = fq.feature_kl(student.requires_grad_(), teacher, distribution=distribution)
    row.mean().backward()
    oracle = Oracle.of(student, teacher, distribution, torch.full_like(row, 1 / row.numel()))
    assert student.grad is not None
    oracle.check_grad(student.grad)


def test_the_teacher_is_a_constant() -> None:
    student, teacher = maps(SHAPE)
    with pytest.raises(InputError, match=r"teacher requires a gradient.*teacher.detach\(\)"):
        fq.feature_kl(student, teacher.requires_grad_())
    with torch.no_grad():
        assert not fq.feature_kl(student.requires_grad_(), teacher).requires_grad
    assert fq.feature_kl(student, teacher.detach()).requires_grad


GOOD = torch.zeros(4, 3, 2)
BAD_INPUT: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "a list": (([[1.0]], GOOD), {}, "student is list; accepted: a tensor"),
    "no teacher": ((GOOD, None), {}, "teacher is NoneType; accepted: a tensor"),
    "one dimension": ((torch.zeros(3), GOOD), {}, r"student has shape \[3\]; accepted: \[samples, channels, ...\]"),
    "no channels": ((torch.zeros(4, 0, 2),) * 2, {}, "at least one channel"),
    "no positions": ((torch.zeros(4, 3, 0),) * 2, {}, "and one position"),
    "integers": ((GOOD.int(), GOOD), {}, r"student is torch.int32; accepted: float32.*student.float\(\)"),
    "other shape": ((GOOD, GOOD[:, :, :1]), {}, r"teacher has shape \[4, 3, 1\] and student \[4, 3, 2\]; accepted: equal shapes"),
    "other device": ((GOOD, GOOD.to("meta")), {}, "teacher is on meta and student on cpu"),
    "a distribution": ((GOOD, GOOD), {"distribution": "spacial"}, "'spacial'; accepted: 'channel', 'spatial', 'flat'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case: str) -> None:
    arguments, options, message = BAD_INPUT[case]
    with pytest.raises(InputError, match=message):
        fq.feature_kl(*arguments, **options)
