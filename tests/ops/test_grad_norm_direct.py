"""The direct form of `grad_sq_norm`: reference and C++ against a loop of single-sample autograd in fp64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

import fastqat as fq
from fastqat._backend import NATIVE_REASON
from fastqat.ops.grad_norm.geometry import LINEAR, positions_last
from fastqat.testing import assert_same_bits, places

from .grad_norm_problems import DTYPES, LAYOUTS, Problem, conv, problem, problems

# Triton's kernels have tests of their own: interpreted they are too slow for these sizes.
PLACES = [place for place in places("grad_norm") if place[0] in ("reference", "cpu")]
LEVELS = ("avx512", "avx2", "baseline")
native = pytest.mark.skipif(NATIVE_REASON is not None, reason=str(NATIVE_REASON))


@pytest.mark.parametrize(("backend", "device"), PLACES)
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_matches_a_loop_of_autograd(backend: str, device: str, problem: Problem) -> None:
    problem.check(backend, device=device)


# What the C++ kernel tells apart: channels in blocks, in runs, in lanes; one chunk, many; tasks along outputs and columns.
CASES = {
    "blocks of channels": lambda **kind: conv(2, 40, 24, (9, 11), (3, 3), padding=1, **kind),
    "runs of few channels": lambda **kind: conv(2, 3, 10, (21, 20), (7, 7), stride=2, padding=3, **kind),
    "runs longer than a vector": lambda **kind: conv(2, 2, 5, (90,), (25,), stride=4, **kind),
    "few channels, dilated": lambda **kind: conv(2, 5, 9, (14, 13), (3, 3), dilation=2, padding=2, **kind),
    "groups": lambda **kind: conv(2, 24, 18, (12, 12), (3, 3), padding=1, groups=6, **kind),
    "depthwise": lambda **kind: conv(2, 37, 37, (15, 16), (3, 3), padding=1, groups=37, **kind),
    "depthwise, more outputs": lambda **kind: conv(2, 17, 51, (9, 8), (5, 2), stride=2, padding=2, groups=17, **kind),
    "depthwise, long kernel": lambda **kind: conv(2, 18, 18, (70,), (11,), dilation=3, padding=9, groups=18, **kind),
    "tiny groups": lambda **kind: conv(2, 40, 20, (7, 7), (3, 3), padding=1, groups=20, **kind),
    "many positions": lambda **kind: conv(1, 18, 5, (47, 45), (3, 3), padding=1, **kind),
    "a long line": lambda **kind: conv(1, 3, 4, (3100,), (5,), padding=2, **kind),
    "many planes": lambda **kind: conv(1, 17, 9, (14, 13, 12), (3, 1, 2), padding=1, stride=2, **kind),
    "depthwise, many planes": lambda **kind: conv(1, 16, 16, (13, 11, 12), (3, 3, 3), padding=1, groups=16, **kind),
    "many outputs": lambda **kind: conv(1, 20, 2100, (3, 5), (1, 1), **kind),
    "many columns": lambda **kind: conv(1, 700, 16, (6, 6), (3, 3), padding=1, **kind),
    "pointwise, strided": lambda **kind: conv(2, 33, 20, (19, 17), (1, 1), stride=2, **kind),
    "one position": lambda **kind: conv(3, 50, 21, (1, 1), (1, 1), **kind),
    "linear": lambda **kind: conv(2, 192, 70, (65,), (1,), **kind),
}


@native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_every_path_at_every_level(name: str, level: str, cpu_levels: None) -> None:
    _set_level(level)
    for layout, factors in (("contiguous", False), ("channels_last", True), ("sliced", False)):
        CASES[name](layout=layout, factors=factors).check("cpu")


@native
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("name", ["blocks of channels", "runs of few channels", "depthwise", "many positions", "many outputs"])
def test_halves_in_every_layout(name: str, layout: str, dtype: torch.dtype) -> None:
    CASES[name](layout=layout, dtype=dtype, factors=True).check("cpu")


def _set_level(level: str) -> None:
    import fastqat._C

    if level not in fastqat._C.build_info()["cpu_levels"]:
        pytest.skip(f"this build has no {level}")
    try:
        fastqat._C.set_cpu_level(level)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def cpu_levels() -> Iterator[None]:
    """Puts the level back that a test changes."""
    import fastqat._C

    before = fastqat._C.cpu_level()
    yield
    fastqat._C.set_cpu_level(before)


@native
@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("name", ["blocks of channels", "groups", "depthwise", "many positions", "many outputs", "many columns"])
def test_threads_and_runs_change_no_bit(name: str, factors: bool) -> None:
    """Nor does the batch that a sample is part of."""
    given, before, results = CASES[name](factors=factors), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results += [given.run("cpu"), given.run("cpu")]
    finally:
        torch.set_num_threads(before)
    alone = given._replace(x=given.x[-1:], grad_y=given.grad_y[-1:]).run("cpu")
    for i, what in enumerate(("norms", "inner products")):
        for result in results[1:]:
            assert_same_bits(result[i], results[0][i], what)
        assert_same_bits(alone[i], results[0][i][-1:], f"{what} of a sample alone")


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("name", ["blocks of channels", "depthwise", "linear"])
def test_cancelling_positions(backend: str, device: str, name: str) -> None:
    """The second half of the batch's positions takes back what the first half adds: G is 0 but for noise and rounding."""
    given = CASES[name]()
    x, grad_y = (torch.cat((t, t), 2) for t in (given.x, given.grad_y))
    depth = grad_y.shape[2] // 2
    grad_y[:, :, depth:] *= -1
    grad_y += 1e-4 * torch.randn(grad_y.shape, generator=torch.Generator().manual_seed(0))
    given._replace(x=x, grad_y=grad_y).check(backend, device=device)


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("name", ["blocks of channels", "runs of few channels", "depthwise", "groups", "linear"])
def test_bf16_against_torchs_own_gradient(backend: str, device: str, name: str) -> None:
    """At most twice the error of the norm of torch's bf16 gradient, both against the gradient in fp64."""
    given = CASES[name](dtype=torch.bfloat16)
    truth, _ = given.oracle()
    groups, _, *rest = given.geometry
    shape = given.geometry.weight_shape(given.x, given.grad_y)
    weight, own = torch.zeros(shape, dtype=torch.bfloat16), []
    for x, grad_y in zip(given.x[:, None], given.grad_y[:, None], strict=True):
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad_y, x, weight, [shape[0]], *rest, False, [0, 0, 0], groups, [False, True, True]
        )
        own.append(of_weight.double().square().sum() + of_bias.double().square().sum())
    got = given.run(backend, device=device)[0].cpu()
    error, allowed = (got.double().sqrt() - truth.sqrt()).abs(), 2 * (torch.stack(own).sqrt() - truth.sqrt()).abs()
    assert bool((error <= allowed.clamp_min(1e-6 * truth.sqrt().max())).all()), (error, allowed)


@pytest.mark.parametrize(("backend", "device"), PLACES)
def test_mask_and_slope_against_the_written_out_gradient(backend: str, device: str) -> None:
    """||mask * G||² and Σ slope * G of y = conv(x, w) written as sums over positions; the slope sees what the mask clears."""
    given = conv(2, 4, 6, (5, 6), (2, 3), padding=1, factors=True)
    assert given.mask is not None and given.slope is not None
    columns = F.unfold(given.x[:, :, 0], (2, 3), padding=1).double()  # [N, C · taps, T]
    gradient = (given.grad_y.flatten(2).double() @ columns.transpose(1, 2)).reshape(2, 6, 4, 1, 2, 3)
    norms = (gradient * given.mask).square().sum((1, 2, 3, 4, 5))
    inner = (gradient * given.slope).sum((2, 3, 4, 5))
    got = given._replace(bias=False).run(backend, device=device)
    torch.testing.assert_close(got[0].cpu().double(), norms, rtol=1e-5, atol=0)
    torch.testing.assert_close(got[1].cpu().double(), inner, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (0, 0, 3)])
def test_nothing_to_add(backend: str, device: str, shape: tuple[int, int, int]) -> None:
    samples, positions, features = shape
    x, grad_y = torch.zeros(shape, device=device), torch.zeros(samples, positions, 4, device=device)
    slope = torch.ones(4, features, 1, 1, 1, device=device)
    norms, inner = Problem(positions_last(x), positions_last(grad_y), LINEAR, slope=slope).run(backend, device=device)
    assert torch.equal(norms, torch.zeros(samples, device=device)) and torch.equal(inner, torch.zeros(samples, 4, device=device))


@native
@pytest.mark.parametrize("name", ["blocks of channels", "runs of few channels", "groups", "depthwise"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_stays_in_its_sample(name: str, value: float) -> None:
    given = CASES[name]()
    clean, _ = given.run("cpu")
    x = given.x.clone()
    x[1, -1, 0, 3, 3] = value
    norms, _ = given._replace(x=x).run("cpu")
    assert not norms[1].isfinite()
    assert_same_bits(norms[0], clean[0])


@native
def test_fp64_is_refused() -> None:
    given = problem(1, 2, 3, (1, 1, 4), LINEAR, torch.float64)
    with pytest.raises(fq.BackendError, match="float64 runs on the reference backend only"):
        given.run("cpu")


@native
def test_opcheck() -> None:
    given = conv(2, 4, 6, (5, 6), (2, 3), padding=1, factors=True, layout="channels_last")
    inputs = (given.x, given.grad_y, given.mask, given.slope, given.geometry.encode(), True, "direct")
    torch.library.opcheck(torch.ops.fastqat.grad_sq_norm.default, inputs)
