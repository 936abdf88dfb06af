"""The Gram forms of `grad_sq_norm` in C++, each forced by name, and the choice of a form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fastqat._backend import NATIVE_REASON
from fastqat.ops.grad_norm.forms import FORMS, Form, cheapest, count
from fastqat.ops.grad_norm.geometry import LINEAR, Geometry, positions_last
from fastqat.testing import assert_same_bits

from .grad_norm_problems import DTYPES, LAYOUTS, Problem, conv, problem, problems

native = pytest.mark.skipif(NATIVE_REASON is not None, reason=str(NATIVE_REASON))
GRAM_FORMS: tuple[Form, ...] = ("gram", "shifted")
both_forms = pytest.mark.parametrize("form", GRAM_FORMS)


def _linear(samples: int, positions: int, inputs: int, outputs: int) -> Problem:
    random = torch.Generator().manual_seed(positions)
    x, grad_y = (torch.randn(samples, positions, features, generator=random) for features in (inputs, outputs))
    return Problem(positions_last(x), positions_last(grad_y), LINEAR)


def _masked(given: Problem, kept: float | None) -> Problem:
    """With a mask that keeps this share of the weight, or none; the inner products with a slope are not the Gram forms' own."""
    shape = given.geometry.weight_shape(given.x, given.grad_y)
    mask = None if kept is None else (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < kept).float()
    return given._replace(mask=mask, slope=None)


@native
@settings(max_examples=70, deadline=None)
@given(problem=problems(), form=st.sampled_from(GRAM_FORMS), kept=st.sampled_from((None, 0.0, 0.3, 0.98, 1.0)))
def test_matches_a_loop_of_autograd(problem: Problem, form: Form, kept: float | None) -> None:
    _masked(problem, kept).check("cpu", form)


# What the kernels tell apart: one block of positions, many; rings that go round; phases of a stride; one position.
CASES: dict[str, Callable[..., Problem]] = {
    "one block": lambda **kind: conv(2, 20, 33, (6, 7), (3, 3), padding=1, **kind),
    "blocks": lambda **kind: conv(2, 20, 17, (14, 13), (3, 3), padding=1, **kind),
    "a ring that goes round": lambda **kind: conv(2, 3, 2, (700,), (5,), padding=4, dilation=2, **kind),
    "rings of phases": lambda **kind: conv(1, 2, 3, (901,), (4,), stride=3, padding=7, dilation=2, **kind),
    "an image": lambda **kind: conv(1, 8, 4, (30, 29), (3, 3), padding=1, **kind),
    "padding beyond the kernel": lambda **kind: conv(2, 4, 5, (9, 7), (2, 2), padding=6, **kind),
    "dilated": lambda **kind: conv(2, 5, 7, (24, 24), (3, 3), padding=5, dilation=5, **kind),
    "strided": lambda **kind: conv(2, 19, 7, (15, 16), (3, 3), padding=1, stride=2, **kind),
    "a stride beyond the kernel": lambda **kind: conv(2, 5, 7, (40, 40), (2, 2), stride=3, **kind),
    "patches": lambda **kind: conv(2, 3, 16, (32, 32), (4, 4), stride=4, **kind),
    "volumes": lambda **kind: conv(2, 3, 4, (7, 8, 9), (3, 2, 3), padding=1, **kind),
    "one column": lambda **kind: conv(2, 6, 4, (75, 1), (3, 1), padding=1, **kind),
    "groups": lambda **kind: conv(2, 24, 18, (9, 9), (3, 3), padding=1, groups=6, **kind),
    "depthwise": lambda **kind: conv(2, 12, 12, (10, 10), (3, 3), padding=1, groups=12, **kind),
    "deep": lambda **kind: conv(2, 300, 140, (50,), (1,), **kind),
    "one position": lambda **kind: conv(3, 70, 30, (1,), (1,), **kind),
    "one position of an image": lambda **kind: conv(3, 34, 6, (3, 3), (3, 3), **kind),
    "one position, padded": lambda **kind: conv(3, 10, 6, (1, 1), (3, 3), padding=1, **kind),
    "one position, groups": lambda **kind: conv(3, 12, 8, (2, 2), (2, 2), groups=4, **kind),
}


def _levels() -> Iterator[str]:
    """Sets every instruction-set level of this CPU in turn, and then the first one again."""
    import fastqat._C as native_module

    before = native_module.cpu_level()
    try:
        for level in native_module.build_info()["cpu_levels"].split():
            try:
                native_module.set_cpu_level(level)
            except RuntimeError:
                continue  # this CPU lacks it
            yield level
    finally:
        native_module.set_cpu_level(before)


@native
@both_forms
@pytest.mark.parametrize("name", CASES)
def test_every_path_at_every_level(name: str, form: Form) -> None:
    for _, kept in itertools.product(_levels(), (None, 0.9)):
        _masked(CASES[name](), kept).check("cpu", form)


@native
@both_forms
@pytest.mark.parametrize("name", ["blocks", "strided", "one position"])
def test_layouts_and_halves(name: str, form: Form) -> None:
    """Halves are widened without error and added in fp32: far more exact than torch's own gradient of them."""
    for layout, dtype in itertools.product(LAYOUTS, DTYPES):
        CASES[name](layout=layout, dtype=dtype).check("cpu", form)


@native
@both_forms
@pytest.mark.parametrize("name", ["blocks", "a ring that goes round", "rings of phases", "groups", "deep", "one position"])
@pytest.mark.parametrize("samples", [1, 7])
def test_threads_and_runs_change_no_bit(name: str, samples: int, form: Form) -> None:
    """Nor does the batch that a sample is part of. A single sample is cut into segments for as many threads."""
    given, before, results = _masked(CASES[name](), 0.9), torch.get_num_threads(), []
    given = given._replace(x=given.x[:1].repeat(samples, 1, 1, 1, 1), grad_y=given.grad_y[:1].repeat(samples, 1, 1, 1, 1))
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results += [given.run("cpu", form)[0], given.run("cpu", form)[0]]
    finally:
        torch.set_num_threads(before)
    for result in results:
        assert_same_bits(result, results[0][:1].repeat(samples), "norms")


@native
@both_forms
@pytest.mark.parametrize("positions", [2, 16, 98, 500])
@pytest.mark.parametrize("kept", [None, 0.9])
def test_cancelling_positions(positions: int, kept: float | None, form: Form) -> None:
    """The second half of the positions takes back what the first half adds, to the last bit or but for noise."""
    half = _linear(3, positions // 2, 64, 48)
    x, grad_y = torch.cat((half.x, half.x), 4), torch.cat((half.grad_y, -half.grad_y), 4)
    _masked(Problem(x, grad_y, LINEAR), kept).check("cpu", form)
    noise = 1e-4 * torch.randn(grad_y.shape, generator=torch.Generator().manual_seed(1))
    _masked(Problem(x, grad_y + noise, LINEAR), kept).check("cpu", form)


@native
@both_forms
def test_nothing_to_add(form: Form) -> None:
    assert _linear(0, 5, 4, 3).run("cpu", form)[0].shape == (0,)
    assert torch.equal(_linear(3, 0, 4, 3).run("cpu", form)[0], torch.zeros(3))
    assert torch.equal(_masked(_linear(3, 0, 4, 3), 0.5).run("cpu", form)[0], torch.zeros(3))


@native
@both_forms
@pytest.mark.parametrize("kept", [None, 0.9])
@pytest.mark.parametrize("name", ["blocks", "strided", "a ring that goes round", "one position"])
def test_what_is_no_number_stays_in_its_sample(name: str, kept: float | None, form: Form) -> None:
    """Scratch memory, rings above all, carries nothing over to the next sample."""
    given = _masked(CASES[name](), kept)
    given = given._replace(x=given.x.repeat(2, 1, 1, 1, 1), grad_y=given.grad_y.repeat(2, 1, 1, 1, 1))
    clean = given.run("cpu", form)[0]
    given.x[1, 1, 0, -1, -1] = math.nan
    given.grad_y[2, 1, 0, -1, 0] = math.inf
    got = given.run("cpu", form)[0]
    assert_same_bits(got[[0, 3]], clean[[0, 3]])
    assert not got[1:3].isfinite().any()


@native
@both_forms
@pytest.mark.parametrize("chunk", [1, 2**22])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["blocks", "groups", "volumes", "one position"])
def test_inner_products_beside_a_gram_form(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, chunk: int, form: Form) -> None:
    """As exact in halves as in fp32, widened one sample at a time or all at once."""
    monkeypatch.setattr("fastqat.ops.grad_norm.op._CHUNK", chunk)
    CASES[name](factors=True, dtype=dtype).check("cpu", form)


@native
def test_inner_products_beyond_fp16() -> None:
    """Outputs of the layer with the slope as its weight that fp16 cannot hold, as with the scaled loss of mixed precision."""
    given = CASES["deep"](factors=True, dtype=torch.float16)
    given = given._replace(x=given.x * 1000, grad_y=given.grad_y * 1000, slope=given.slope * 100)
    for form in FORMS:
        assert bool(given.check("cpu", form)[1].isfinite().all())


def test_counts() -> None:
    layer = conv(1, 128, 128, (16, 16), (3, 3), padding=1)
    assert [round(count(form, layer.x, layer.grad_y, layer.geometry) / 1e6) for form in FORMS] == [75, 84, 17]


@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_pixels_of_phases_are_counted(problem: Problem) -> None:
    """Σ P² over phases against a walk over all kernels: two pixels meet when a tap sees them at two output positions."""
    (groups, kernel, stride, padding, dilation), size, output = problem.geometry, problem.x.shape[2:], problem.grad_y.shape[2:]
    pairs = 1
    for n, t, k, s, p, d in zip(size, output, kernel, stride, padding, dilation, strict=True):
        phases: dict[int, set[int]] = {}
        for tap in range(k):
            end = t + (k - 1) * d // s
            phases.setdefault(tap * d % s, set()).update(i for a in range(end) if 0 <= (i := a * s + tap * d % s - p) < n)
        pairs *= sum(len(pixels) ** 2 for pixels in phases.values())
    positions = math.prod(output)
    want = positions**2 * (problem.grad_y.shape[1] + groups * problem.geometry.taps) + pairs * problem.x.shape[1]
    assert count("shifted", problem.x, problem.grad_y, problem.geometry) == want


def _chosen(given: Problem, mask: Tensor | None = None, slope: Tensor | None = None) -> Form:
    return cheapest(FORMS, given.x, given.grad_y, given.geometry, mask, slope)


def test_choice() -> None:
    assert _chosen(conv(1, 128, 128, (16, 16), (3, 3), padding=1)) == "shifted"
    assert _chosen(conv(1, 512, 512, (4, 4), (3, 3), padding=1)) == "shifted"
    assert _chosen(conv(1, 256, 512, (8, 8), (3, 3), padding=1, stride=2)) == "shifted"
    assert _chosen(conv(1, 16, 16, (32, 32), (3, 3), padding=1)) == "direct"
    assert _chosen(conv(1, 32, 32, (14, 14), (3, 3), padding=1, groups=32)) == "direct"
    assert _chosen(conv(1, 3, 768, (224, 224), (16, 16), stride=16)) == "gram"
    assert _chosen(_linear(1, 700, 768, 768)) == "gram"
    assert _chosen(_linear(1, 1, 768, 10)) == "gram"
    assert _chosen(_linear(1, 1024, 64, 64)) == "direct"


def test_choice_with_mask_and_slope() -> None:
    layer, late = conv(1, 128, 128, (16, 16), (3, 3), padding=1), conv(1, 256, 256, (8, 8), (3, 3), padding=1)
    mask = torch.ones(128, 128, 1, 3, 3)
    few = mask.clone()
    few.view(-1)[:1000] = 0
    assert _chosen(layer, few) == "shifted"
    assert _chosen(layer, torch.zeros_like(mask)) == "direct"
    assert _chosen(layer, few, mask) == "direct"
    assert _chosen(late, torch.ones(256, 256, 1, 3, 3), torch.ones(256, 256, 1, 3, 3)) == "shifted"


def test_one_form_leaves_no_choice() -> None:
    """Then the mask is not read: on a GPU that would wait for it."""
    layer = problem(1, 4, 4, (1, 8, 8), Geometry(1, (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1)))
    unreadable = torch.ones(4, 4, 1, 3, 3, device="meta")
    assert cheapest(("direct",), layer.x, layer.grad_y, layer.geometry, unreadable) == "direct"
