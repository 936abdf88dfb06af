"""The Gram forms of `grad_sq_norm` on the CPU, each forced by name, and the choice of a form by count."""

from __future__ import annotations

import math
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fastqat import use_backend
from fastqat._backend import NATIVE_REASON
from fastqat.ops.grad_norm.forms import FORMS, Form, cheapest, count
from fastqat.ops.grad_norm.geometry import LINEAR, Geometry, positions_last
from fastqat.ops.grad_norm.op import grad_sq_norm

pytestmark = pytest.mark.skipif(NATIVE_REASON is not None, reason=str(NATIVE_REASON))
GRAM_FORMS: tuple[Form, ...] = ("gram", "shifted")
LEVELS = ("avx512", "avx2", "baseline")
TOLERANCE = 1e-6  # of (Σ ‖g_t‖ ‖u_t‖)², what the pairs of positions add up to when nothing cancels: 8 roundings of fp32


class Problem(NamedTuple):
    x: Tensor
    grad_y: Tensor
    geometry: Geometry
    mask: Tensor | None = None
    bias: bool = True

    def norms(self, form: Form) -> Tensor:
        with use_backend("cpu"):
            return grad_sq_norm(self.x, self.grad_y, self.mask, None, self.geometry.encode(), self.bias, form)[0]

    def oracle(self) -> Tensor:
        """A loop of single-sample autograd in fp64."""
        weight = torch.zeros(self.geometry.weight_shape(self.x, self.grad_y), dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(self.grad_y.shape[1], dtype=torch.float64, requires_grad=True)
        groups, _, *rest = self.geometry
        stride, padding, dilation = rest
        norms = []
        for x, grad_y in zip(self.x.double(), self.grad_y.double(), strict=True):
            y = torch.nn.functional.conv3d(x[None], weight, bias, stride, padding, dilation, groups)
            grads = torch.autograd.grad(y, (weight, bias), grad_y[None])
            masked = grads[0] if self.mask is None else grads[0] * self.mask
            norms.append(masked.square().sum() + (grads[1].square().sum() if self.bias else 0))
        return torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float64)

    def size(self) -> Tensor:
        """(Σ ‖g_t‖ ‖u_t‖)², with the bias as one more input of ones."""
        groups, kernel, *rest = self.geometry
        ones = torch.ones(1, self.x.shape[1], *kernel, dtype=torch.float64)
        u_sq = torch.nn.functional.conv3d(self.x.double().square(), ones, None, *rest)[:, 0] + self.bias
        g_sq = self.grad_y.double().square().sum(1)
        return (u_sq * g_sq).sqrt().sum((1, 2, 3)).square()

    def check(self, form: Form, tolerance: float = TOLERANCE) -> None:
        got, want = self.norms(form), self.oracle()
        assert got.dtype == torch.float32 and got.shape == want.shape
        assert (got >= 0).all()
        assert ((got - want).abs() <= tolerance * self.size()).all(), (form, got, want)


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last_3d),
    "sliced": lambda t: torch.stack((t, t), -1)[..., 1],
    "batch_last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    dims = draw(st.integers(1, 3))
    largest = {1: 120, 2: 13, 3: 6}[dims]

    def triple(least: int, most: int, fill: int) -> tuple[int, int, int]:
        a, b, c = [fill] * (3 - dims) + [draw(st.integers(least, most)) for _ in range(dims)]
        return a, b, c

    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    geometry = Geometry(groups, triple(1, 4, 1), triple(1, 3, 1), triple(0, 5, 0), triple(1, 3, 1))
    size = triple(1, largest, 1)
    output = geometry.output_size(size)
    while min(output) < 1:
        size = size[0] + (dims > 2), size[1] + (dims > 1), size[2] + 1
        output = geometry.output_size(size)
    samples, channels, outputs = draw(st.sampled_from((0, 1, 2, 3))), groups * draw(st.integers(1, 19)), groups * draw(st.integers(1, 19))
    torch.manual_seed(draw(st.integers(0, 999)))
    dtype, layout = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16))), LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    kept = draw(st.sampled_from((None, 0.0, 0.3, 0.98, 1.0)))
    shape = outputs, channels // groups, *geometry.kernel
    mask = None if kept is None else (torch.rand(shape) < kept).float()
    x, grad_y = (layout(torch.randn(samples, *rest).to(dtype)) for rest in ((channels, *size), (outputs, *output)))
    return Problem(x, grad_y, geometry, mask, draw(st.booleans()))


def _linear(samples: int, positions: int, inputs: int, outputs: int, **options: object) -> Problem:
    torch.manual_seed(0)
    x, grad_y = torch.randn(samples, positions, inputs), torch.randn(samples, positions, outputs)
    return Problem(positions_last(x), positions_last(grad_y), LINEAR, **options)  # type: ignore[arg-type]  # mask and bias by name


def _conv(samples: int, channels: int, outputs: int, size: tuple[int, ...], geometry: Geometry, **options: object) -> Problem:
    torch.manual_seed(0)
    x, grad_y = torch.randn(samples, channels, *size), torch.randn(samples, outputs, *geometry.output_size(size))
    return Problem(x, grad_y, geometry, **options)  # type: ignore[arg-type]  # mask and bias by name


def _square(kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Geometry:
    return Geometry(groups, (1, kernel, kernel), (1, stride, stride), (0, padding, padding), (1, dilation, dilation))


@settings(max_examples=80, deadline=None)
@given(problem=problems(), form=st.sampled_from(GRAM_FORMS))
def test_matches_a_loop_of_autograd(problem: Problem, form: Form) -> None:
    problem.check(form)


def _wide_cases() -> dict[str, Problem]:
    return {
        "ring goes round": _conv(2, 3, 2, (1, 1, 700), Geometry(1, (1, 1, 5), (1, 1, 1), (0, 0, 4), (1, 1, 2))),
        "ring goes round in phases": _conv(1, 2, 3, (1, 1, 901), Geometry(1, (1, 1, 4), (1, 1, 3), (0, 0, 7), (1, 1, 2))),
        "padding beyond the kernel": _conv(2, 4, 5, (1, 9, 7), _square(2, padding=6)),
        "images": _conv(2, 8, 4, (1, 30, 29), _square(3, padding=1)),
        "dilated": _conv(2, 5, 7, (1, 24, 24), _square(3, padding=5, dilation=5)),
        "stride beyond the kernel": _conv(2, 5, 7, (1, 40, 40), _square(2, stride=3)),
        "patches": _conv(2, 3, 16, (1, 32, 32), _square(4, stride=4)),
        "volumes": _conv(2, 3, 4, (7, 8, 9), Geometry(1, (3, 2, 3), (1, 1, 2), (1, 0, 1), (1, 2, 1))),
        "one column": _conv(2, 6, 4, (1, 75, 1), Geometry(1, (1, 3, 1), (1, 1, 1), (0, 1, 0), (1, 1, 1))),
        "depthwise": _conv(2, 12, 12, (1, 10, 10), _square(3, padding=1, groups=12)),
        "deep": _linear(2, 50, 300, 140),
        "one position": _linear(5, 1, 70, 30),
        "one position of an image": _conv(3, 10, 6, (1, 3, 3), _square(3)),
        "one position, padded": _conv(3, 10, 6, (1, 1, 1), _square(3, padding=1)),
        "one position, grouped": _conv(3, 12, 8, (1, 2, 2), _square(2, groups=4)),
    }


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", GRAM_FORMS)
@pytest.mark.parametrize("name", _wide_cases())
def test_wide_cases_at_every_level(name: str, form: Form, level: str, cpu_level: None) -> None:
    _set_level(level)
    _wide_cases()[name].check(form)


def _set_level(level: str) -> None:
    import fastqat._C

    if level not in fastqat._C.build_info()["cpu_levels"]:
        pytest.skip(f"this build has no {level}")
    try:
        fastqat._C.set_cpu_level(level)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def cpu_level() -> object:
    """Puts the level back that a test changes."""
    import fastqat._C

    before = fastqat._C.cpu_level()
    yield
    fastqat._C.set_cpu_level(before)


@pytest.mark.parametrize("form", GRAM_FORMS)
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_threads_change_no_bit(form: Form, samples: int) -> None:
    problems = _conv(samples, 8, 4, (1, 30, 29), _square(3, padding=1)), _linear(samples, 1, 3000, 20), _linear(samples, 300, 20, 10)
    before = torch.get_num_threads()
    try:
        for problem in problems:
            results = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                results += [problem.norms(form), problem.norms(form)]
            assert all(torch.equal(result, results[0]) for result in results[1:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", GRAM_FORMS)
@pytest.mark.parametrize("positions", [2, 16, 98, 500])
def test_cancelling_positions(form: Form, positions: int) -> None:
    """The second half of the positions takes back what the first half adds: G = 0 but for the roundings of the pairs."""
    half = _linear(3, positions // 2, 64, 48)
    x, grad_y = torch.cat((half.x, half.x), 4), torch.cat((half.grad_y, -half.grad_y), 4)
    problem = Problem(x, grad_y, LINEAR)
    problem.check(form)
    noise = grad_y + 1e-3 * torch.randn_like(grad_y)
    Problem(x, noise, LINEAR, (torch.rand(48, 64, 1, 1, 1) > 0.1).float()).check(form)


@pytest.mark.parametrize("form", GRAM_FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_added_in_fp32(form: Form, dtype: torch.dtype) -> None:
    """Far more exact than torch's own gradient of the same halves, which is rounded at the end."""
    problem = _conv(4, 24, 20, (1, 11, 11), _square(3, padding=1))
    problem = problem._replace(x=problem.x.to(dtype), grad_y=problem.grad_y.to(dtype))
    assert torch.allclose(problem.norms(form).double(), problem.oracle(), rtol=1e-5)


@pytest.mark.parametrize("form", GRAM_FORMS)
def test_empty(form: Form) -> None:
    assert _linear(0, 5, 4, 3).norms(form).shape == (0,)
    assert torch.equal(_linear(3, 0, 4, 3).norms(form), torch.zeros(3))


@pytest.mark.parametrize("form", GRAM_FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_samples_do_not_touch_each_other(form: Form, masked: bool) -> None:
    """NaN and infinity stay in their sample, and scratch memory carries nothing over."""
    problem = _conv(4, 5, 6, (1, 12, 12), _square(3, padding=1))
    if masked:
        problem = problem._replace(mask=(torch.rand(6, 5, 1, 3, 3) > 0.1).float())
    clean = problem.norms(form)
    problem.x[1, 2, 0, 5, 5] = math.nan
    problem.grad_y[2, 3, 0, 0, 0] = math.inf
    got = problem.norms(form)
    assert torch.equal(got[[0, 3]], clean[[0, 3]])
    assert not got[1:3].isfinite().any()


def test_counts() -> None:
    layer = _conv(1, 128, 128, (1, 16, 16), _square(3, padding=1))
    assert [round(count(form, layer.x, layer.grad_y, layer.geometry) / 1e6) for form in FORMS] == [75, 84, 17]


def _chosen(problem: Problem, slope: Tensor | None = None) -> Form:
    return cheapest(FORMS, problem.x, problem.grad_y, problem.geometry, problem.mask, slope)


def test_choice() -> None:
    late, early = _conv(1, 128, 128, (1, 16, 16), _square(3, padding=1)), _conv(1, 16, 16, (1, 32, 32), _square(3, padding=1))
    assert _chosen(late) == "shifted"
    assert _chosen(early) == "direct"
    assert _chosen(_linear(1, 700, 768, 768)) == "gram"
    assert _chosen(_linear(1, 1, 768, 10)) == "gram"
    assert _chosen(_conv(1, 32, 32, (1, 14, 14), _square(3, padding=1, groups=32))) == "direct"


def test_choice_with_a_mask() -> None:
    layer = _conv(1, 128, 128, (1, 16, 16), _square(3, padding=1))
    mask = torch.ones(128, 128, 1, 3, 3)
    few = mask.clone()
    few.view(-1)[:1000] = 0
    assert _chosen(layer._replace(mask=few)) == "shifted"
    assert _chosen(layer._replace(mask=torch.zeros_like(mask))) == "direct"
    assert _chosen(layer._replace(mask=few), slope=mask) == "direct"
