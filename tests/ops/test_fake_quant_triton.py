"""The Triton backend of fake quantization against the reference, on a GPU or interpreted, and what its kernels compile to."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

import fastqat as fq
from fastqat.ops.fake_quant import launch, reference
from fastqat.ops.fake_quant.launch import Triton
from fastqat.ops.fake_quant.reference import Grid
from fastqat.ops.fake_quant.tiling import ONE_PROGRAM
from fastqat.testing import assert_same_bits, places, ties, with_layout

pytest.importorskip("triton")
DEVICE = next((device for backend, device in places("fake_quant") if backend == "triton"), None)
ON_GPU = DEVICE == "cuda"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
SEMANTICS = ["div", "reciprocal"]
RANGES = {"2": (-2, 1), "3u": (0, 7), "4": (-8, 7), "8": (-128, 127), "8u": (0, 255), "16": (-32768, 32767), "16u": (0, 65535)}
runs = pytest.mark.skipif(DEVICE is None, reason="needs a GPU or TRITON_INTERPRET=1")
gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


def make_grid(x: torch.Tensor, axis: int | None, group: int | None, zero: bool, semantics: str, limits: tuple[int, int] = (-4, 3)) -> Grid:
    generator = torch.Generator().manual_seed(x.numel())
    shape = [1] if axis is None else [x.shape[axis]]
    if axis is not None and group is not None:
        shape = [n // group if d == axis else n for d, n in enumerate(x.shape)]
    scale = torch.rand(shape, generator=generator) * 0.2 + 0.01
    zero_point = torch.randint(-1, 3, shape, generator=generator).float() if zero else None
    return Grid(scale, zero_point, *limits, axis, group, semantics)


def on_device(grid: Grid) -> Grid:
    return grid._replace(scale=grid.scale.to(DEVICE), zero_point=None if grid.zero_point is None else grid.zero_point.to(DEVICE))


def sums_of(grad_y: torch.Tensor, x: torch.Tensor, grid: Grid, factor: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Σ terms and Σ|terms| in fp64 of the scale and the zero point, from the contract's fp32 terms."""
    terms = reference.gradient_terms(grad_y, x, grid)[1:]
    return [(reference._total(t, grid) * factor, reference._total(t.abs(), grid) * factor) for t in terms]


def check(x: torch.Tensor, grid: Grid) -> None:
    """Forward, codes and grad_x bit by bit, both sums within the bound of the kernels, in place or not: the same bits."""
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.empty_like(x).copy_(torch.randn(x.shape, generator=generator))
    device_x, device_grad, device_grid = x.to(DEVICE), grad_y.to(DEVICE), on_device(grid)
    x_hat = Triton.forward(device_x, device_grid)
    assert_same_bits(x_hat.cpu(), reference.forward(x, grid), "x_hat")
    assert x_hat.stride() == torch.empty_like(x).stride()
    assert_same_bits(Triton.codes(device_x, device_grid).cpu(), reference.codes(x, grid), "codes")
    zero = grid.zero_point is not None
    first = Triton.backward(device_grad, device_x, device_grid, 0.25, True, zero)
    second = Triton.backward(device_grad.clone(), device_x, device_grid, 0.25, True, zero, True)
    for one, two in zip(first, second, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert_same_bits(one, two, "in place")
    assert_same_bits(first[0].cpu(), reference.gradient_terms(grad_y, x, grid)[0].to(x.dtype), "grad_x")
    for got, (want, size) in zip(first[1:], sums_of(grad_y, x, grid, 0.25), strict=True):
        if got is not None:
            assert got.shape == grid.scale.shape and got.dtype == torch.float32
            error = (got.cpu().double() - want.reshape(got.shape)).abs()
            close = (error <= 2.0**-21 * size.reshape(got.shape) + 2.0**-24 * want.abs().reshape(got.shape) + 1e-40) | want.isnan()
            assert bool(close.all()), f"sum off by {error.max():.3g} of {size.max():.3g}"


# Per tensor, per channel on every axis of every layout, groups of neighbours and along other axes: (shape, axis, group size, layout).
VIEWS = [
    ((2100,), None, None, "contiguous"),
    ((2, 19, 6, 11), None, None, "sliced"),
    *[((2, 19, 6, 11), axis, None, layout) for axis in range(4) for layout in ("contiguous", "channels_last", "transposed", "sliced")],
    ((9, 3, 7, 7), 1, None, "contiguous"),  # runs that are no whole vectors, folded to columns
    ((9, 3, 7, 7), 1, None, "channels_last"),  # three channels, many to a row
    ((40, 24, 3, 3), 1, None, "channels_last"),
    ((24, 27), 0, None, "contiguous"),  # a weight: short unaligned rows
    ((3, 2100), 0, None, "contiguous"),  # rows of more than one tile
    ((600, 5), 1, None, "contiguous"),
    ((300, 8), 1, None, "contiguous"),
    ((7,), 0, None, "contiguous"),  # a scale per element
    ((16, 96), 1, 32, "contiguous"),
    ((4, 16, 3, 3), 1, 8, "contiguous"),  # groups along a middle axis
    ((4, 16, 3, 3), 1, 8, "channels_last"),
    ((12, 40), 0, 4, "contiguous"),
    ((6, 10), 1, 1, "contiguous"),
    ((2, 1, 64, 10), 1, None, "contiguous"),  # one channel is per tensor
]


@runs
@pytest.mark.parametrize(("shape", "axis", "group", "layout"), VIEWS, ids=str)
def test_views(shape: tuple[int, ...], axis: int | None, group: int | None, layout: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    number = VIEWS.index((shape, axis, group, layout))
    x = with_layout(x.to(DTYPES[number % len(DTYPES)]), layout) if x.dim() == 4 else x.to(DTYPES[number % len(DTYPES)])
    check(x, make_grid(x, axis, group, number // 2 % 2 == 0, SEMANTICS[number // 4 % 2]))


@runs
@pytest.mark.parametrize(("dtype", "semantics", "zero"), list(itertools.product(DTYPES, SEMANTICS, [False, True])), ids=str)
def test_types(dtype: torch.dtype, semantics: str, zero: bool) -> None:
    x = torch.randn(5, 8, 7, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    for axis, layout in ((None, "contiguous"), (1, "channels_last"), (0, "contiguous")):
        shaped = with_layout(x, layout)
        check(shaped, make_grid(shaped, axis, None, zero, semantics))


@runs
@pytest.mark.parametrize("size", [0, 1, 3, 1023, 1024, 1025, 2049, ONE_PROGRAM - 1, ONE_PROGRAM + 1], ids=str)
def test_sizes(size: int) -> None:
    dtype = DTYPES[size % len(DTYPES)]
    x = torch.randn(size, generator=torch.Generator().manual_seed(3)).to(dtype)
    check(x, make_grid(x, None, None, size % 2 == 0, "div"))
    if 0 < size <= 3 or size == 1025:
        columns = x[:, None].expand(size, 5).contiguous()
        check(columns, make_grid(columns, 1, None, True, "reciprocal"))


@runs
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, when the interpreter overflows as it should
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("bits", RANGES)
def test_ties_neighbours_and_extremes(bits: str, semantics: str) -> None:
    qmin, qmax = RANGES[bits]
    for scale, zero in ((0.0371, None), (1e4, 3.0)):
        x = ties(scale, max(qmin, -100), min(qmax, 100))
        grid = Grid(torch.tensor([scale]), None if zero is None else torch.tensor([zero]), qmin, qmax, None, None, semantics)
        check(x, grid)
        x_hat = Triton.forward(x.to(DEVICE), on_device(grid)).cpu()
        assert not (torch.signbit(x_hat) & (x_hat == 0)).any(), "-0 returned"


@runs
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_shows_in_the_sums_of_its_channel_only() -> None:
    x = torch.tensor([[0.3, torch.nan], [torch.inf, 0.4], [-torch.inf, 3e38]], device=DEVICE)
    grid = Grid(torch.full([2], 0.5, device=DEVICE), torch.zeros(2, device=DEVICE), -8, 7, 1, None, "div")
    grad_x, grad_scale, grad_zero_point = Triton.backward(torch.ones_like(x), x, grid, 1.0, True, True)
    assert grad_x.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert grad_scale.isnan().tolist() == grad_zero_point.isnan().tolist() == [False, True]
    assert Triton.codes(x, grid).tolist() == [[1, -8], [7, 1], [-8, 7]]


@runs
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_absurd_scales_stay_within_their_channel() -> None:
    x = torch.ones(3, 37)  # one tile of rows that is not whole: idle lanes must not add to a sum
    scale = torch.tensor([0.0, 1e-45, 0.5])
    grid = Grid(scale, None, -8, 7, 0, None, "reciprocal")
    got = Triton.backward(x.to(DEVICE), x.to(DEVICE), on_device(grid), 1.0, True, False)
    want = reference.backward(x, x, grid, 1.0, True, False)
    assert_same_bits(got[0].cpu(), want[0])
    torch.testing.assert_close(got[1].cpu(), want[1], rtol=0, atol=0)


@runs
def test_only_the_wanted_sums() -> None:
    x = torch.randn(40, 9, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    grid = on_device(make_grid(x.cpu(), 1, None, True, "div"))
    both = Triton.backward(x, x, grid, 1.0, True, True)
    for needs in ((True, False), (False, True), (False, False)):
        got = Triton.backward(x, x, grid, 1.0, *needs)
        assert_same_bits(got[0], both[0])
        for wanted, one, all_ in zip(needs, got[1:], both[1:], strict=True):
            assert (one is not None) == wanted
            if one is not None:
                assert_same_bits(one, all_)


@runs
def test_every_output_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(allocate):
        def allocated(*args, **kwargs):
            out = allocate(*args, **kwargs)
            return out.fill_(torch.nan if out.dtype.is_floating_point else 77)

        return allocated

    x = torch.randn(3, 10, 7, 7, generator=torch.Generator().manual_seed(6))
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(launch.torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    for axis, group in ((None, None), (0, None), (1, None), (3, None), (1, 5)):
        check(x, make_grid(x, axis, group, True, "div"))


@runs
def test_asked_for_by_name() -> None:
    x = torch.randn(3, 50, device=DEVICE, requires_grad=True)
    scale = torch.full([50], 0.1, device=DEVICE, requires_grad=True)
    with fq.use_backend("triton"):
        fq.fake_quantize(x, scale, qmin=-8, qmax=7, axis=1).sum().backward()
        assert scale.grad is not None and scale.grad.isfinite().all()
        with pytest.raises(RuntimeError, match="float64 runs on the reference"):
            fq.fake_quantize(x.detach().double(), scale.detach(), qmin=-8, qmax=7, axis=1)
        if not ON_GPU:
            with pytest.raises(RuntimeError, match="no bfloat16"):
                fq.fake_quantize(x.detach().bfloat16(), scale.detach(), qmin=-8, qmax=7, axis=1)


COMPILE = """
import re, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastqat._bench.static_launches import one_tensor

def ptx(variant, fuse=False):
    names = list(variant.types)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(variant.kernel, signature=dict(variant.types), constexprs=dict(variant.constants), attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={**variant.options, "enable_fp_fusion": fuse}).asm["ptx"]

for variant in one_tensor():
    if variant.name in sys.argv[1:]:
        text = ptx(variant)
        bad = re.findall(r"fma|ftz|approx|atom\\.|red\\.global", text)
        assert not bad, (variant.kernel, variant.name, bad)
        div = variant.constants.get("RECIPROCAL") is False
        assert not div or "div.rn.f32" in text, "no correctly rounded division"
        if variant.kernel.__name__ == "fake_quant_backward_rows_kernel":
            assert "fma" in ptx(variant, fuse=True), "the option has no effect, so this proves nothing"
        print("checked", variant.kernel.__name__, variant.name)
"""


def test_compiled_for_sm_90_without_contraction() -> None:
    """bf16, which the interpreter lacks, and no fused multiply-add, flush to zero, approximation or atomic in any kernel."""
    names = ["tensor, bfloat16, zero point, reciprocal", "channels-last, bfloat16", "tensor, float32"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE, *names], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checked") == 9


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import fastqat
assert "fastqat.ops.fake_quant.kernels" not in sys.modules and "fastqat._triton" not in sys.modules
import fastqat.ops.fake_quant.kernels
"""


def test_kernels_are_imported_at_first_use_and_can_be_read_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@gpu
def test_captured_in_a_cuda_graph() -> None:
    x, grad = torch.randn(64, 96, 28, 28, device="cuda"), torch.randn(64, 96, 28, 28, device="cuda")
    grid = on_device(make_grid(x.cpu(), 1, None, True, "div"))
    eager = (Triton.forward(x, grid), *Triton.backward(grad, x, grid, 1.0, True, True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = (Triton.forward(x, grid), *Triton.backward(grad, x, grid, 1.0, True, True))
    graph.replay()
    for got, want in zip(captured, eager, strict=True):
        assert_same_bits(got, want)


@gpu
def test_never_waits_for_the_device() -> None:
    x = torch.randn(64, 96, 28, 28, device="cuda")
    on_cpu = make_grid(x.cpu(), 1, None, True, "div")
    grid = on_device(on_cpu)
    Triton.forward(x, grid)
    Triton.backward(x, x, grid, 1.0, True, True)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        x_hat = Triton.forward(x, grid)
        grad_x, *_ = Triton.backward(x, x, grid, 1.0, True, True)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert_same_bits(x_hat.cpu(), reference.forward(x.cpu(), on_cpu), "x_hat")
    assert_same_bits(grad_x.cpu(), reference.gradient_terms(x.cpu(), x.cpu(), on_cpu)[0], "grad_x")


@gpu
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_more_than_31_bits_of_elements(axis: int | None) -> None:
    if torch.cuda.get_device_properties(0).total_memory < 60 << 30:
        pytest.skip("needs 60 GiB")
    x = torch.randn(2**26 + 8, 33, device="cuda").bfloat16()
    x = x.T.contiguous() if axis == 0 else x
    grid = on_device(make_grid(x, axis, None, False, "div"))
    x_hat = Triton.forward(x, grid)
    grad_x, grad_scale, _ = Triton.backward(x, x, grid, 1.0, True, False)
    part = grid if axis != 0 else grid._replace(scale=grid.scale[-1:])
    end = x[-1:] if axis == 0 else x[-4096:]
    assert_same_bits(x_hat[-end.shape[0] :], Triton.forward(end.contiguous(), part))
    assert grad_x.isfinite().all() and grad_scale is not None and grad_scale.isfinite().all()
