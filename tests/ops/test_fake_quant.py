"""fake_quantize and quantize_codes: every backend against the reference bit by bit, and the reference against autograd and torch."""

from __future__ import annotations

import itertools

import pytest
import torch

import fastqat as fq
from fastqat import testing
from fastqat.ops.fake_quant import reference
from fastqat.ops.fake_quant.reference import Grid
from fastqat.testing import assert_same_bits, assert_sum_close, with_layout

# Interpreted Triton kernels take their time: test_fake_quant_matrix.py and test_fake_quant_triton.py are for them.
PLACES = [place for place in testing.places("fake_quant") if place != ("triton", "cpu")]
FAST = [place for place in PLACES if place != ("reference", "cpu")]  # compared with the reference on the CPU
RANGES = {"w2": (-2, 1), "u4": (0, 15), "s8": (-128, 127), "u16": (0, 65535)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEMANTICS = ["div", "reciprocal"]
everywhere = pytest.mark.parametrize(("backend", "device"), PLACES)
fast = pytest.mark.parametrize(("backend", "device"), FAST)
native = pytest.mark.skipif(("cpu", "cpu") not in PLACES, reason="fastqat._C is not built")


def quantizer(channels: int | None, zero_point: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    n = 1 if channels is None else channels
    scale = torch.rand(n, generator=generator) * 0.2 + 0.01
    return scale, torch.randint(-1, 3, (n,), generator=generator).float() if zero_point else None


def on(device: str, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    return tuple(None if t is None else t.to(device) for t in tensors)


def gradients(
    backend: str, device: str, x: torch.Tensor, grad: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, **options: object
) -> tuple:
    """x_hat and the gradients of x, scale and zero point, computed on `device`, returned on the CPU."""
    x, scale = x.detach().to(device).requires_grad_(), scale.to(device, copy=True).requires_grad_()
    zero_point = None if zero_point is None else zero_point.to(device, copy=True).requires_grad_()
    with fq.use_backend(backend):
        y = fq.fake_quantize(x, scale, zero_point, **options)
        y.backward(grad.to(device))
    results = (y.detach(), x.grad, scale.grad, None if zero_point is None else zero_point.grad)
    return tuple(None if t is None else t.cpu() for t in results)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("bits", RANGES)
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.0371, 3e-5, 1e4])
@everywhere
def test_codes_match_fp64_on_every_tie(backend: str, device: str, scale: float, bits: str, semantics: str) -> None:
    qmin, qmax = RANGES[bits]
    s = torch.tensor(scale)
    x = testing.ties(scale, max(qmin, -300), min(qmax, 300))
    v = x / s if semantics == "div" else x * s.reciprocal()  # fp32 on purpose: the contract rounds v once
    want = v.double().round().clamp(qmin, qmax).nan_to_num(nan=qmin)
    with fq.use_backend(backend):
        there = x.to(device), s.to(device)
        codes = fq.quantize_codes(*there, qmin=qmin, qmax=qmax, semantics=semantics).cpu()
        x_hat = fq.fake_quantize(*there, qmin=qmin, qmax=qmax, semantics=semantics).cpu()
    assert torch.equal(codes.double(), want)
    assert_same_bits(x_hat, torch.where(x.isnan(), x, codes.float() * s), "x_hat")
    assert not (torch.signbit(x_hat) & (x_hat == 0)).any(), "-0 returned"


@pytest.mark.parametrize("bits", ["w2", "u4", "s8"])
@pytest.mark.parametrize("dtype", DTYPES)
@everywhere
def test_reciprocal_equals_torch(backend: str, device: str, dtype: torch.dtype, bits: str) -> None:
    qmin, qmax = RANGES[bits]
    x = testing.ties(0.0371, qmin, qmax).to(dtype)
    x = x[x.isfinite() & (x.abs() < 1e6)]
    with fq.use_backend(backend):
        ours = fq.fake_quantize(*on(device, x, torch.tensor(0.0371), torch.tensor(1.0)), qmin=qmin, qmax=qmax, semantics="reciprocal").cpu()
    theirs = torch.fake_quantize_per_tensor_affine(x, torch.tensor(0.0371), torch.tensor(1, dtype=torch.int32), qmin, qmax)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_reference_gradients_equal_autograd_of_the_formula(semantics: str) -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    grad, scale = torch.randn_like(x), torch.tensor(0.31, dtype=torch.float64)
    y, grad_x, grad_scale, grad_zero = gradients(
        "reference", "cpu", x, grad, scale, torch.tensor(1.0, dtype=torch.float64), qmin=-3, qmax=4, semantics=semantics, grad_factor=0.7
    )
    xr, sr, zr = x.clone().requires_grad_(), scale.clone().requires_grad_(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    v = xr / sr
    rounded = v + (v.round() - v).detach()
    tested = v if semantics == "div" else v.round()
    inside = (tested >= -3 - 1) & (tested <= 4 - 1)
    want = torch.where(inside, rounded, torch.where(tested < -4, -3 - zr, 4 - zr)) * sr
    want.backward(grad)
    torch.testing.assert_close(y, want.detach())
    torch.testing.assert_close(grad_x, xr.grad)
    torch.testing.assert_close(grad_scale, sr.grad * 0.7)
    torch.testing.assert_close(grad_zero, zr.grad * 0.7)


CASES = list(itertools.product([None, 0, 1, 2, 3], testing.LAYOUTS, [False, True]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("axis", "layout", "zero_point"), CASES)
@fast
def test_backend_equals_reference(backend: str, device: str, axis: int | None, layout: str, zero_point: bool, dtype: torch.dtype) -> None:
    semantics = SEMANTICS[(len(layout) + zero_point) % 2]
    generator = torch.Generator().manual_seed(0)
    x = with_layout(torch.randn(5, 37, 6, 11, generator=generator).to(dtype), layout)
    grad = torch.randn(5, 37, 6, 11, generator=generator).to(dtype)
    scale, zero = quantizer(None if axis is None else x.shape[axis], zero_point)
    options = {"qmin": -4, "qmax": 3, "axis": axis, "semantics": semantics, "grad_factor": 0.25}
    there = with_layout(x.to(device), layout)
    got = gradients(backend, device, there, grad, scale, zero, **options)
    want = gradients("reference", "cpu", x, grad, scale, zero, **options)
    assert_same_bits(got[0], want[0], "x_hat")
    assert_same_bits(got[1], want[1], "grad_x")
    assert got[0].stride() == torch.empty_like(x).stride()
    terms = reference.gradient_terms(grad, x, Grid(scale, zero, -4, 3, axis, None, semantics))[1:]
    dims = None if axis is None else [d for d in range(4) if d != axis]
    assert_sum_close(got[2], terms[0], 0.25, dims, "grad_scale")
    if zero_point:
        assert_sum_close(got[3], terms[1], 0.25, dims, "grad_zero_point")
    with fq.use_backend(backend):
        codes = fq.quantize_codes(there, *on(device, scale, zero), qmin=-4, qmax=3, axis=axis, semantics=semantics).cpu()
    assert_same_bits(codes, reference.codes(x, Grid(scale, zero, -4, 3, axis, None, semantics)), "codes")


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (7,), (16385,), (3, 70001), (70001, 3), (2, 600, 5), (2000, 33)], ids=str)
@pytest.mark.parametrize("axis", [None, 0, -1])
@fast
def test_shapes(backend: str, device: str, shape: tuple[int, ...], axis: int | None) -> None:
    if not shape and axis is not None:
        pytest.skip("a scalar has no axis")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    scale, zero = quantizer(None if axis is None else shape[axis], True)
    options = {"qmin": 0, "qmax": 15, "axis": axis}
    got, want = (gradients(*place, x, grad, scale, zero, **options) for place in ((backend, device), ("reference", "cpu")))
    assert_same_bits(got[0], want[0])
    assert_same_bits(got[1], want[1])
    front = None if axis is None else axis % x.dim()
    dims = None if axis is None else [d for d in range(x.dim()) if d != front]
    terms = reference.gradient_terms(grad, x, Grid(scale, zero, 0, 15, front, None, "div"))[1:]
    assert_sum_close(got[2], terms[0], 1.0, dims)
    assert_sum_close(got[3], terms[1], 1.0, dims)


@pytest.mark.parametrize("axis", [None, 1])
@everywhere
def test_edges(backend: str, device: str, axis: int | None) -> None:
    x = torch.tensor([[0.3, torch.nan], [torch.inf, 0.4], [-torch.inf, 3e38]])
    scale = torch.tensor([0.5] if axis is None else [0.5, 0.5])
    y, grad_x, grad_scale, grad_zero = gradients(
        backend, device, x, torch.ones_like(x), scale, torch.zeros_like(scale), qmin=-8, qmax=7, axis=axis
    )
    assert_same_bits(y, torch.tensor([[0.5, torch.nan], [3.5, 0.5], [-4.0, 3.5]]))
    assert_same_bits(grad_x, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert grad_scale.isnan().any() and grad_zero.isnan().any(), "a NaN must show in the sums"
    if axis == 1:
        assert grad_scale[0].isfinite() and grad_zero[0].isfinite()
    with fq.use_backend(backend):
        assert fq.quantize_codes(*on(device, x, scale), qmin=-8, qmax=7, axis=axis).tolist() == [[1, -8], [7, 1], [-8, 7]]


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300_001,), (4, 64, 31, 31), (9, 130, 1025)], ids=str)
def test_same_bits_for_threads_and_instruction_sets(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from fastqat import _C

    x, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    axis = None if len(shape) == 1 else 1
    scale, zero = quantizer(None if axis is None else shape[1], True)
    before, level = torch.get_num_threads(), _C.cpu_level()
    supported = [name for name in _C.build_info()["cpu_levels"].split() if _level_works(name)]
    results = []
    try:
        for threads, name in itertools.product([1, 2, 3], supported):
            torch.set_num_threads(threads)
            _C.set_cpu_level(name)
            results.append(gradients("cpu", "cpu", x, grad, scale, zero, qmin=-8, qmax=7, axis=axis))
    finally:
        torch.set_num_threads(before)
        _C.set_cpu_level(level)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert_same_bits(got, want)


def _level_works(name: str) -> bool:
    from fastqat import _C

    level = _C.cpu_level()
    try:
        _C.set_cpu_level(name)
    except RuntimeError:
        return False
    _C.set_cpu_level(level)
    return True


@native
def test_half_types_convert_exactly() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = every.view(dtype)
        x = x[x.isfinite() & (x.abs() < 30000)]
        for step in (2.0**-24, 2.0**-15, 1.0):  # grids on which every half value is exact, saturated or rounded
            s = torch.tensor(step)
            got = fq.fake_quantize(x, s, qmin=-32768, qmax=32767)
            assert_same_bits(got, reference.forward(x, Grid(s, None, -32768, 32767, None, None, "div")))
        fine = torch.randn(100_000) * torch.logspace(-9, 5, 100_000)
        got = fq.fake_quantize(fine.to(dtype), torch.tensor(0.0371), qmin=-32768, qmax=32767)
        assert_same_bits(got, reference.forward(fine.to(dtype), Grid(torch.tensor(0.0371), None, -32768, 32767, None, None, "div")))


@fast
def test_every_output_is_written(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_like = torch.empty_like

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        out = empty_like(*args, **kwargs)
        return out.fill_(torch.nan) if out.dtype.is_floating_point else out.fill_(-77)

    monkeypatch.setattr(torch, "empty_like", poisoned)
    x = torch.randn(3, 50, 7, 7)
    for axis in (None, 0, 1, 3):
        scale, zero = quantizer(None if axis is None else x.shape[axis], True)
        for out in gradients(backend, device, x, torch.ones_like(x), scale, zero, qmin=0, qmax=15, axis=axis):
            assert out.isfinite().all()


def test_permuted_gradient_is_read_in_the_order_of_x() -> None:
    x = torch.randn(4, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(4, 8, 5, 5)
    scale = torch.tensor([0.1])
    for place in PLACES:
        _, grad_x, *_ = gradients(*place, x, grad, scale, None, qmin=-128, qmax=127)
        assert_same_bits(grad_x, grad)
