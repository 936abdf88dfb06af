"""What holds for every shape, stride, range, scale and zero point: properties that hypothesis tries to break, on every backend."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fastqat as fq
from fastqat import testing
from fastqat.testing import assert_same_bits

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install hypothesis")
from hypothesis import given, settings  # noqa: E402  # after the skip
from hypothesis import strategies as st  # noqa: E402

settings.register_profile("fastqat", derandomize=True, database=None, deadline=None, max_examples=80)
checked = settings(settings.get_profile("fastqat"))
PLACES = testing.places("fake_quant")


class Problem(NamedTuple):
    """A call of the op: where, on what, with what."""

    place: tuple[str, str]
    x: Tensor
    scale: Tensor
    zero_point: Tensor | None
    options: dict[str, Any]

    def codes(self, x: Tensor, **changed: Any) -> Tensor:
        with fq.use_backend(self.place[0]):
            return fq.quantize_codes(x, self.scale, self.zero_point, **(self.options | changed))

    def x_hat(self, x: Tensor, **changed: Any) -> Tensor:
        with fq.use_backend(self.place[0]):
            return fq.fake_quantize(x, self.scale, self.zero_point, **(self.options | changed))

    def gradients(self, x: Tensor, grad_y: Tensor, **changed: Any) -> tuple[Tensor, Tensor]:
        x, scale = x.detach().requires_grad_(), self.scale.clone().requires_grad_()
        with fq.use_backend(self.place[0]):
            y = fq.fake_quantize(x, scale, self.zero_point, **(self.options | changed))
            return torch.autograd.grad(y, (x, scale), grad_y)

    def each(self, values: Tensor | None) -> Tensor:
        """A value per element of x, zero for None."""
        if values is None:
            return self.x.new_zeros(self.x.shape, dtype=torch.float32)
        return testing.spread(values, self.x.shape, self.options["axis"], self.options["group_size"])


def in_strange_strides(draw: st.DrawFn, x: Tensor) -> Tensor:
    """x with permuted strides, gaps between its elements, or dimensions of stride 0."""
    order = draw(st.permutations(range(x.dim())))
    x = x.permute(order).contiguous()
    for d in range(x.dim()):
        kind = draw(st.sampled_from(["dense", "dense", "gaps", "repeated"]))
        if kind == "gaps":
            x = x.repeat_interleave(2, d)[(slice(None),) * d + (slice(None, None, 2),)]
        if kind == "repeated" and x.shape[d] > 1:
            x = x.narrow(d, 0, 1).expand_as(x)
    return x.permute([order.index(d) for d in range(x.dim())])


@st.composite
def problems(draw: st.DrawFn, values: tuple[str, ...] = ("hard", "random", "nan")) -> Problem:
    backend, device = draw(st.sampled_from(PLACES))
    dtypes = [torch.float32, torch.float16] if (backend, device) == ("triton", "cpu") else [torch.float32, torch.float16, torch.bfloat16]
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    group_size = None if axis is None else draw(st.sampled_from([None, *(d for d in range(1, 7) if shape[axis] % d == 0)]))
    scale_shape = () if axis is None else (shape[axis],)
    if group_size is not None:
        scale_shape = (*shape[:axis], shape[axis] // group_size, *shape[axis + 1 :])
    qmin = draw(st.integers(-140, 10))
    qmax = draw(st.integers(max(qmin, 0), qmin + 255))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    scale = torch.rand(scale_shape, generator=generator) * 2.0 ** draw(st.integers(-8, 4)) + 2.0**-9
    zero_point = torch.randint(min(qmin, 0), qmax + 1, scale_shape, generator=generator)
    zero_point = draw(st.sampled_from([None, zero_point.float(), zero_point.int()]))
    options = {
        "qmin": qmin,
        "qmax": qmax,
        "axis": axis,
        "group_size": group_size,
        "semantics": draw(st.sampled_from(["div", "reciprocal"])),
    }
    problem = Problem((backend, device), torch.randn(shape, generator=generator), scale, zero_point, options)
    s, kind = problem.each(scale), draw(st.sampled_from(values))
    x = problem.x * s * qmax / 2 if kind == "random" else testing.hard_values(s, problem.each(zero_point), qmin, qmax, generator)
    if kind == "nan":
        x = torch.where(problem.x > 1, torch.nan, x)
    x = in_strange_strides(draw, x.to(device, dtype))
    return problem._replace(x=x, scale=scale.to(device), zero_point=None if zero_point is None else zero_point.to(device))


@checked
@given(problems())
def test_values_are_the_codes_times_the_scale(problem: Problem) -> None:
    x, options = problem.x, problem.options
    codes, x_hat = problem.codes(x), problem.x_hat(x)
    assert bool(((codes >= options["qmin"]) & (codes <= options["qmax"])).all())
    want = (codes.float() - problem.each(problem.zero_point)) * problem.each(problem.scale)
    assert_same_bits(x_hat, torch.where(x.isnan(), x, want.to(x.dtype)))


@checked
@given(problems())
def test_a_second_time_changes_nothing(problem: Problem) -> None:
    once = problem.x_hat(problem.x)
    assert_same_bits(problem.x_hat(once), once)


@checked
@given(problems(("hard", "random")))
def test_the_error_is_at_most_half_a_step_inside(problem: Problem) -> None:
    x, s, z = problem.x.double(), problem.each(problem.scale).double(), problem.each(problem.zero_point).double()
    error = (problem.codes(problem.x) - z) * s - x
    inside = (x / s >= problem.options["qmin"] - z) & (x / s <= problem.options["qmax"] - z)
    assert bool((error.abs() <= s * (0.5 + 2e-5))[inside].all())


@checked
@given(problems(("hard", "random")))
def test_larger_values_never_get_smaller_codes(problem: Problem) -> None:
    per_tensor = problem._replace(
        scale=torch.full((), 0.3, device=problem.x.device), zero_point=None, options=problem.options | {"axis": None, "group_size": None}
    )
    codes = per_tensor.codes(problem.x.flatten().sort().values)
    assert bool((codes[1:] >= codes[:-1]).all())


@checked
@given(problems(), st.sampled_from([1.0, math.inf, math.nan, -0.0]))
def test_grad_x_is_grad_y_inside_and_positive_zero_outside(problem: Problem, special: float) -> None:
    x, z = problem.x, problem.each(problem.zero_point)
    grad_y = torch.linspace(-1, 1, x.numel(), device=x.device).reshape(x.shape).to(x.dtype)
    grad_y = torch.where(grad_y.abs() < 0.5, special, grad_y)
    grad_x, _ = problem.gradients(x, grad_y)
    s = problem.each(problem.scale)
    v = x.float() / s if problem.options["semantics"] == "div" else (x.float() * s.reciprocal()).round()
    inside = (v >= problem.options["qmin"] - z) & (v <= problem.options["qmax"] - z)
    assert_same_bits(grad_x, torch.where(inside, grad_y, 0.0))


@checked
@given(problems())
def test_the_layout_changes_nothing(problem: Problem) -> None:
    x, plain = problem.x, problem.x.contiguous()
    assert_same_bits(problem.x_hat(x), problem.x_hat(plain))
    assert_same_bits(problem.codes(x), problem.codes(plain))
    grad_y = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device, x.dtype)
    (grad_x, grad_scale), (want_x, want_scale) = problem.gradients(x, grad_y), problem.gradients(plain, grad_y)
    assert_same_bits(grad_x, want_x)
    assert torch.allclose(grad_scale, want_scale, rtol=1e-4, atol=1e-3, equal_nan=True)  # another order of additions


@checked
@given(problems())
def test_each_slice_is_quantized_by_its_own_scale_alone(problem: Problem) -> None:
    axis, group_size = problem.options["axis"], problem.options["group_size"]
    whole = problem.x_hat(problem.x)
    if axis is None or group_size is not None:  # a scale for every element of the flat tensor
        s, z = problem.each(problem.scale), None if problem.zero_point is None else problem.each(problem.zero_point)
        flat = problem._replace(
            scale=s.reshape(-1).contiguous(), zero_point=None if z is None else z.reshape(-1).contiguous(),
            options=problem.options | {"axis": 0, "group_size": None},
        )  # fmt: skip
        assert_same_bits(flat.x_hat(problem.x.reshape(-1)).reshape(whole.shape), whole)
        return
    for c in range(problem.x.shape[axis]):
        one = problem._replace(
            scale=problem.scale[c],
            zero_point=None if problem.zero_point is None else problem.zero_point[c],
            options=problem.options | {"axis": None},
        )
        assert_same_bits(one.x_hat(problem.x.select(axis, c)), whole.select(axis, c))


@checked
@given(problems(("hard", "random")))
def test_a_symmetric_range_treats_both_signs_alike(problem: Problem) -> None:
    symmetric = problem._replace(zero_point=None, options=problem.options | {"qmin": -problem.options["qmax"]})
    assert torch.equal(symmetric.x_hat(-problem.x), -symmetric.x_hat(problem.x))


@checked
@given(problems(("random",)), st.integers(-3, 3))
def test_a_power_of_two_passes_through(problem: Problem, exponent: int) -> None:
    x, factor = problem.x.float(), 2.0**exponent
    scaled = problem._replace(scale=problem.scale * factor)
    assert_same_bits(scaled.x_hat(x * factor), problem.x_hat(x) * factor)
    grad_x, grad_scale = problem.gradients(x, torch.ones_like(x))
    doubled = problem.gradients(x, torch.ones_like(x), grad_factor=2.0)
    assert_same_bits(doubled[0], grad_x)
    assert_same_bits(doubled[1], grad_scale * 2)


@checked
@given(problems(("hard", "random")))
def test_the_zero_point_shifts_the_codes(problem: Problem) -> None:
    wide = {"qmin": -1024, "qmax": 1023}
    plain = problem._replace(zero_point=None).codes(problem.x, **wide).int()
    z = problem.each(problem.zero_point).int()
    unclamped = plain.abs() < 512
    assert torch.equal(problem.codes(problem.x, **wide).int()[unclamped], (plain + z)[unclamped])
