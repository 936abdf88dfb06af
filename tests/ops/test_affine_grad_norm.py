"""affine_grad_norm: every backend against fp64, in every layout, at awkward sizes, and the same bits for any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastqat as fq
from fastqat.ops.affine_grad_norm import launch, op, reference
from fastqat.ops.affine_grad_norm.reference import KINDS, Statistics
from fastqat.testing import assert_same_bits, places

from .levels import at_every_level

PLACES = places(op.OP)
FAST = [place for place in PLACES if place != ("triton", "cpu")]  # the interpreter takes a second for a small case
everywhere = pytest.mark.parametrize(("backend", "device"), PLACES)
native = pytest.mark.skipif(("cpu", "cpu") not in PLACES, reason="fastqat._C is not built")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["positions", "channels", "grad_y other", "sliced", "expanded"]
RTOL = 1e-5  # of a norm


def statistics_of(kind: str, x: Tensor, groups: int = 1, eps: float = 1e-5) -> Statistics:
    if kind != "given":
        return Statistics(kind, groups=groups, eps=eps)
    mean = x.float().mean((0, 2)) + 0.1 if x.numel() else torch.zeros(x.shape[1])
    return Statistics(kind, mean, torch.rand(x.shape[1]) + 0.5, eps=eps)


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The values of ``[N, C, T]`` (expanded: of the first sample and position) in another layout."""
    if layout == "channels":
        return t.mT.contiguous().mT
    if layout == "sliced":
        wide = torch.zeros(*t.shape[:2], 2 * t.shape[2], dtype=t.dtype)
        wide[..., ::2] = t
        return wide[..., ::2]
    return t[:1, :, :1].expand_as(t) if layout == "expanded" else t.contiguous()


def exact(x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool = True, bias: bool = True) -> Tensor:
    """In fp64, of the values as they are stored."""
    wide = statistics._replace(**{name: t.double() for name in ("mean", "var") if (t := getattr(statistics, name)) is not None})
    centred = x.double()
    if statistics.kind in ("group", "position") and x.numel():
        cut = centred.unflatten(1, (statistics.groups if statistics.kind == "group" else 1, -1))
        centred = (cut - cut.mean((2, 3) if statistics.kind == "group" else 2, keepdim=True)).flatten(1, 2)
    return reference.sq_norm(centred, grad_y.double(), wide, weight, bias)


def check(backend: str, device: str, x: Tensor, grad_y: Tensor, statistics: Statistics, wanted: tuple[bool, bool] = (True, True)) -> None:
    moved = statistics._replace(**{name: t.to(device) for name in ("mean", "var") if (t := getattr(statistics, name)) is not None})
    with fq.use_backend(backend):
        got = op.sq_norm(x.to(device), grad_y.to(device), moved, *wanted).cpu()
    want = exact(x, grad_y, statistics, *wanted)
    assert got.dtype == torch.float32 and (got >= 0).all()
    terms = exact(x.abs(), grad_y.abs(), Statistics("none")).sqrt() * 1e-7 if statistics.kind in ("none", "negative") else 1e-6
    torch.testing.assert_close(got.double().sqrt(), want.sqrt(), rtol=RTOL, atol=float(torch.as_tensor(terms).max()) if x.numel() else 0)


def draw(shape: tuple[int, int, int], mean: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return (torch.randn(shape) + mean).to(dtype), torch.randn(shape).to(dtype)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "device"), FAST)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 10), st.integers(1, 150)),
    groups=st.sampled_from([1, 2, 3]),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    wanted=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_accuracy(backend: str, device: str, kind: str, shape, groups: int, layout: str, dtype: torch.dtype, wanted) -> None:
    samples, channels, positions = shape
    x, grad_y = draw((samples, channels * groups, positions), 1.0, dtype)
    statistics = statistics_of(kind, x, groups)
    x = laid_out(x, "positions" if layout == "grad_y other" else layout)
    check(backend, device, x, laid_out(grad_y, "channels" if layout == "grad_y other" else layout), statistics, wanted)


@pytest.mark.parametrize("layout", ["positions", "channels"])
@pytest.mark.parametrize("kind", KINDS)
@everywhere
def test_every_kind_on_every_backend(backend: str, device: str, kind: str, layout: str) -> None:
    x, grad_y = draw((2, 6, 35), 2.0)
    check(backend, device, laid_out(x, layout), laid_out(grad_y, layout), statistics_of(kind, x, groups=2))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 1), (2, 1, 7), (2, 17, 1), (0, 4, 3), (3, 4, 0)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "device"), FAST)
def test_sizes_of_one_and_none(backend: str, device: str, kind: str, shape: tuple[int, int, int]) -> None:
    check(backend, device, *draw(shape), statistics_of(kind, torch.randn(shape)))


@pytest.mark.parametrize("shape", [(2, 3, 5000), (1, 2, 70_001), (1, 5000, 3), (1, 700, 130)])
@pytest.mark.parametrize("layout", ["positions", "channels"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "device"), FAST)
def test_long_sums_of_one_sign(backend: str, device: str, kind: str, layout: str, shape: tuple[int, int, int]) -> None:
    x, grad_y = draw(shape)
    check(backend, device, laid_out(x, layout), laid_out(grad_y.abs() * 0.1, layout), statistics_of(kind, x))


@pytest.mark.parametrize("first", [0.0, 300.0, -300.0])
@pytest.mark.parametrize("layout", ["positions", "channels"])
@pytest.mark.parametrize("kind", ["given", "group", "position"])
@everywhere
def test_a_mean_that_is_large_beside_the_deviation(backend: str, device: str, kind: str, layout: str, first: float) -> None:
    x, grad_y = draw((2, 6, 40), 300.0)
    x[..., 0] += first  # the values that a sum may be taken about are far from the mean
    x[:, 0] += first
    check(backend, device, laid_out(x, layout), laid_out(grad_y, layout), statistics_of(kind, x, groups=3))


@pytest.mark.parametrize("kind", ["position", "rms"])
def test_more_channels_than_a_tile_of_triton(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = next((place for place in PLACES if place[0] == "triton"), None)
    if place is None:
        pytest.skip("triton is not installed")
    monkeypatch.setattr(launch, "MOST_CHANNELS", 4)
    check(*place, *draw((2, 6, 3), 100.0), statistics_of(kind, torch.zeros(0)))


def test_two_dtypes_are_read_in_the_wider_one() -> None:
    x, grad_y = draw((2, 3, 20))
    half = x.bfloat16()
    assert_same_bits(op.sq_norm(half, grad_y, Statistics("none")), op.sq_norm(half.float(), grad_y, Statistics("none")))


def test_float64_takes_the_reference() -> None:
    x, grad_y = (t.double() for t in draw((2, 3, 5)))
    assert op.sq_norm(x, grad_y, Statistics("none")).dtype == torch.float64
    for name in {backend for backend, _ in PLACES} - {"reference"}:
        with fq.use_backend(name), pytest.raises(fq.BackendError, match="float64 runs on the reference backend only"):
            op.sq_norm(x, grad_y, Statistics("none"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "device"), FAST)
def test_nan_stays_with_its_sample(backend: str, device: str, kind: str) -> None:
    x, grad_y = draw((3, 4, 21))
    statistics = statistics_of(kind, x, groups=2)
    with fq.use_backend(backend):
        want = op.sq_norm(x.to(device), grad_y.to(device), statistics)
        x[1, 2, 5] = torch.nan
        got = op.sq_norm(x.to(device), grad_y.to(device), statistics)
    assert got.isnan().tolist() == [False, True, False]
    assert_same_bits(got[[0, 2]], want[[0, 2]])


@native
@pytest.mark.parametrize("layout", ["positions", "channels"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [4, 49, 1055])  # less than a vector, than a run, more
def test_same_bits_for_threads_and_instruction_sets(positions: int, dtype: torch.dtype, kind: str, layout: str) -> None:
    x, grad_y = (laid_out(t, layout) for t in draw((3, 48, positions), 0.5, dtype))
    statistics = statistics_of(kind, x, groups=4)
    results = at_every_level(lambda: op.sq_norm(x, grad_y, statistics))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@everywhere
def test_opcheck(backend: str, device: str) -> None:
    x, grad_y = (t.to(device) for t in draw((2, 4, 3)))
    mean, var = (t.to(device) for t in (torch.zeros(4), torch.ones(4)))
    with fq.use_backend(backend):
        for given in (("given", mean, var, 1, 1e-5, True, True), ("position", None, None, 1, 1e-5, True, False)):
            torch.library.opcheck(op.affine_grad_sq_norm, (x, grad_y.mT.contiguous().mT, *given))


def test_compiles_without_a_break() -> None:
    x, grad_y = draw((2, 4, 30))
    compiled = torch.compile(lambda x, g: op.sq_norm(x, g, Statistics("group", groups=2, eps=1e-5)) * 2, fullgraph=True, backend="eager")
    assert_same_bits(compiled(x, grad_y), op.sq_norm(x, grad_y, Statistics("group", groups=2, eps=1e-5)) * 2)


COMPILE = """
import itertools, torch
from bench.static_launches import recorded, variant
from bench.static_triton import binary_of
from fastqat.ops.affine_grad_norm import kernels
from fastqat.ops.affine_grad_norm.launch import Triton
from fastqat.ops.affine_grad_norm.reference import Statistics

kinds = [("given", (80, 90, 100)), ("negative", (90,)), ("group", (90,)), ("position", (90,))]
for layout, dtype, channels in (("positions", torch.float32, 64), ("channels", torch.float32, 192), ("channels", torch.bfloat16, 8192)):
    tensors = [torch.empty(8, *((channels, 64) if layout == "positions" else (64, channels)), dtype=dtype, device="meta") for _ in range(2)]
    x, grad_y = tensors if layout == "positions" else [t.mT for t in tensors]
    mean, var = torch.empty(2, channels, device="meta")
    for kind, archs in kinds:
        with recorded(kernels) as launches:
            Triton.sq_norm(x, grad_y, Statistics(kind, mean, var, groups=32), True, True)
        for launch, arch in itertools.product(launches, archs if dtype == torch.float32 else (90,)):
            code = binary_of(variant(launch, kind), arch).asm["ptx"]
            narrow = kind == "group" or layout == "positions" and kind == "position"
            assert narrow or dtype == torch.bfloat16 or "ld.global.v4" in code, f"{layout}, {kind}: not read 128 bits at a time"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="triton compiles on Linux")
def test_the_kernels_compile_for_every_architecture() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # the interpreter replaces the compiler
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
