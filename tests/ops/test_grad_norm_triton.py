"""The Triton backend of gradient norms against the reference in fp64, on a GPU or interpreted, and what its kernels compile to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastqat as fq
from fastqat.ops.grad_norm import addresses, launch, reference, tiling
from fastqat.ops.grad_norm.geometry import LINEAR, Geometry
from fastqat.ops.grad_norm.launch import Triton
from fastqat.testing import assert_same_bits, pairwise, places

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent.parent
DEVICE = next((device for backend, device in places("grad_norm") if backend == "triton"), None)
ON_GPU = DEVICE == "cuda"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
# Products of half precision are exact in fp32, so only sums and squares round: at most 2⁻²⁴ per addition of a few hundred.
TOLERANCE = 1e-5
ONE, NONE = (1, 1, 1), (0, 0, 0)
runs = pytest.mark.skipif(DEVICE is None, reason="needs a GPU or TRITON_INTERPRET=1")
gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


def arrange(x: Tensor, layout: str) -> Tensor:
    """The values of ``[N, C, D, H, W]`` in another memory layout; expanded: those of the first position, at all."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "sliced":
        return torch.cat([x, x.flip(4)], 4)[..., : x.shape[4]]
    if layout == "transposed":
        return x.permute(4, 0, 3, 1, 2).contiguous().permute(1, 3, 4, 2, 0)
    return x[:, :, :1, :1, :1].expand(x.shape) if layout == "expanded" else x.contiguous()


@dataclass(frozen=True)
class Problem:
    """One call of the operator as data; random, the same on every run."""

    samples: int
    channels: int
    outputs: int
    size: tuple[int, int, int]
    geometry: Geometry = LINEAR
    dtype: torch.dtype = torch.float32
    x_layout: str = "contiguous"
    grad_layout: str = "contiguous"
    masked: bool = False
    sloped: bool = False
    bias: bool = True
    tensors: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.samples + self.channels)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        weight = (self.outputs, self.channels // self.geometry.groups, *self.geometry.kernel)
        self.tensors["x"] = arrange(draw(self.samples, self.channels, *self.size).to(DEVICE, self.dtype), self.x_layout)
        grad_y = draw(self.samples, self.outputs, *self.geometry.output_size(self.size))
        self.tensors["grad_y"] = arrange(grad_y.to(DEVICE, self.dtype), self.grad_layout)
        if self.masked:
            self.tensors["mask"] = (draw(*weight) > -0.5).float().to(DEVICE)
        if self.sloped:
            self.tensors["slope"] = draw(*weight).to(DEVICE)

    def operands(self, wide: bool = False) -> tuple[Any, ...]:
        """x, grad_y, mask and slope; with `wide` in fp64 on the CPU."""
        found = [self.tensors.get(name) for name in ("x", "grad_y", "mask", "slope")]
        return tuple(None if t is None else t.cpu().double() if wide else t for t in found)

    def results(self) -> list[Tensor]:
        """Norms in every form that serves this problem, and inner products last, if there are any."""
        norm, inner = Triton.direct(*self.operands(), self.geometry, self.bias)
        found = [norm] if self.masked else [norm, self.gram()]
        return found if inner is None else [*found, inner]

    def gram(self) -> Tensor:
        x, grad_y, *_ = self.operands()
        return Triton.gram(x, grad_y, None, self.geometry, self.bias, "gram")

    def check(self) -> list[Tensor]:
        """Every form against the fp64 reference, to a relative error of `TOLERANCE`; inner products relative to Σ |slope ∘ G|."""
        want, inner = reference.direct(*self.operands(wide=True), self.geometry, self.bias)
        got = self.results()
        for norm in got if inner is None else got[:-1]:
            self.close(norm, want, want)
        if inner is not None:
            x, grad_y, _, slope = self.operands(wide=True)
            self.close(got[-1], inner, reference.direct(x.abs(), grad_y.abs(), None, slope.abs(), self.geometry, False)[1])
        return got

    @staticmethod
    def close(got: Tensor, want: Tensor, size: Tensor | None) -> None:
        assert got.dtype == torch.float32 and got.shape == want.shape and size is not None
        error = (got.cpu() - want).abs() / size.clamp_min(1e-30)
        assert bool((error <= TOLERANCE).all()), f"relative error {error.max():.3g}"


GEOMETRIES = {
    "linear": ((1, 1, 20), LINEAR),
    "one position": ((1, 1, 1), LINEAR),
    "one window": ((1, 3, 2), Geometry(1, (1, 3, 3), ONE, (0, 0, 1), ONE)),
    "pointwise": ((1, 4, 5), LINEAR),
    "pointwise, stride": ((2, 6, 7), LINEAR._replace(stride=(1, 2, 3))),
    "pointwise, padding": ((1, 4, 5), LINEAR._replace(padding=(0, 1, 0))),
    "1-D": ((1, 1, 31), Geometry(1, (1, 1, 5), (1, 1, 2), (0, 0, 2), (1, 1, 3))),
    "2-D": ((1, 5, 6), Geometry(1, (1, 3, 3), ONE, (0, 1, 1), ONE)),
    "2-D, stride, dilation": ((1, 9, 8), Geometry(1, (1, 3, 2), (1, 2, 3), (0, 2, 0), (1, 2, 3))),
    "2-D, stride beyond the kernel": ((1, 9, 9), Geometry(1, (1, 2, 2), (1, 4, 3), NONE, ONE)),
    "3-D": ((4, 4, 5), Geometry(1, (2, 3, 2), (2, 1, 2), (1, 1, 0), (1, 1, 2))),
}
# channels, outputs, groups
WIDTHS = [(5, 3, 1), (20, 36, 1), (4, 8, 4), (6, 16, 2)]
CASES = pairwise(
    where=list(GEOMETRIES),
    width=WIDTHS,
    dtype=DTYPES,
    x_layout=["contiguous", "channels_last", "sliced", "transposed"],
    grad_layout=["contiguous", "channels_last", "sliced", "expanded"],
    extras=[(False, False, True), (True, False, False), (True, True, True), (False, True, False)],
)


@runs
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_against_the_reference(case: dict[str, Any]) -> None:
    size, geometry = GEOMETRIES[case["where"]]
    channels, outputs, groups = case["width"]
    masked, sloped, bias = case["extras"]
    Problem(
        2,
        channels,
        outputs,
        size,
        geometry._replace(groups=groups),
        case["dtype"],
        case["x_layout"],
        case["grad_layout"],
        masked,
        sloped,
        bias,
    ).check()


# More than one tile along every dimension of each kernel, or more than one step of its loops.
SQUARE = Geometry(1, (1, 3, 3), ONE, (0, 1, 1), ONE)
LAST = {"x_layout": "channels_last", "grad_layout": "channels_last"}
TILED = {
    "direct": Problem(2, 4, 40, (1, 4, 5), SQUARE, masked=True, sloped=True),
    "direct, groups": Problem(1, 8, 72, (1, 3, 4), SQUARE._replace(groups=2)),
    "grouped": Problem(2, 20, 20, (1, 5, 6), SQUARE._replace(groups=20), masked=True, sloped=True),
    "grouped, channels-last": Problem(2, 20, 40, (1, 6, 6), Geometry(20, (1, 3, 2), ONE, NONE, ONE), masked=True, **LAST),
    "gram, odd number of tiles": Problem(2, 5, 6, (1, 1, 75)),
    "gram, even number of tiles": Problem(1, 5, 20, (1, 1, 110)),
    "masked rows": Problem(34, 37, 35, (1, 1, 1), masked=True, sloped=True),
    "masked rows of groups": Problem(34, 4, 70, (1, 3, 3), Geometry(2, (1, 3, 3), ONE, NONE, ONE), masked=True, sloped=True),
}


@runs
@pytest.mark.parametrize("problem", TILED.values(), ids=TILED)
def test_many_tiles(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right, with every output and every part written, and the same bits on every run."""
    original = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: original(*args, **kwargs).fill_(torch.nan))
    for one, two in zip(problem.check(), problem.results(), strict=True):
        assert_same_bits(one, two)


@runs
def test_rows_of_more_than_one_step() -> None:
    problem = Problem(3, 1100, 1030, (1, 1, 1), bias=False)
    want = reference.gram(*problem.operands(wide=True)[:3], LINEAR, False, "gram")
    Problem.close(problem.gram(), want, want)


@runs
@pytest.mark.parametrize("name", ["direct", "grouped"])
def test_programs_of_several_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples in programs of two have the bits that they have one by one."""
    problem = replace(TILED[name], samples=3, tensors={})
    alone = problem.results()
    for each in ("direct_tiling", "grouped_tiling"):
        monkeypatch.setattr(launch, each, in_pairs(getattr(tiling, each)))
    for got, want in zip(problem.results(), alone, strict=True):
        assert_same_bits(got, want)


def in_pairs(original: Callable[..., tiling.Tiling]) -> Callable[..., tiling.Tiling]:
    """A tiling with two samples for each program."""

    def cut(*args: Any) -> tiling.Tiling:
        found = original(*args)
        return found._replace(repeat=2, programs=2 * found.parts)

    return cut


@runs
@pytest.mark.parametrize("name", ["3-D", "linear", "one window"])
def test_offsets_of_64_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size, geometry = GEOMETRIES[name]
    wide = addresses.addresses
    monkeypatch.setattr(launch, "addresses", lambda *args: wide(*args)._replace(wide=True))
    Problem(1, 4, 8, size, geometry, masked=True, sloped=True).check()
    for groups in (1, 4):
        Problem(1, 4, 8, size, geometry._replace(groups=groups)).check()


def test_large_samples_take_64_bits() -> None:
    x = torch.empty(2, 2, 1, 1, 2**30 + 1, device="meta")
    assert not addresses.addresses(x[..., 1:].contiguous(), x[..., 1:].contiguous(), LINEAR).wide
    assert addresses.addresses(x, x, LINEAR).wide


@runs
def test_cancelling_positions_never_give_a_negative_norm() -> None:
    x, grad_y = torch.ones(2, 3, 1, 1, 40, device=DEVICE), torch.ones(2, 5, 1, 1, 40, device=DEVICE) * 1e3
    x[..., 1::2] = -1.0 - 2.0**-20
    got = Triton.gram(x, grad_y, None, LINEAR, False, "gram")
    want = reference.direct(x.cpu().double(), grad_y.cpu().double(), None, None, LINEAR, False)[0]
    size = (grad_y.double().norm(dim=1) * x.double().norm(dim=1)).flatten(1).sum(1).square().cpu()
    assert bool((got >= 0).all()) and bool(((got.cpu() - want).abs() <= TOLERANCE * size).all())


@runs
def test_nan_reaches_only_its_own_sample() -> None:
    problem = TILED["direct"]
    x, grad_y, *_ = problem.operands()
    x = x.clone()
    x[1, 3, 0, 2, 2] = torch.nan
    for got in (
        Triton.direct(x, grad_y, None, None, problem.geometry, True)[0],
        Triton.gram(x, grad_y, None, problem.geometry, True, "gram"),
    ):
        assert got.isnan().tolist() == [False, True]


@runs
@pytest.mark.parametrize(("samples", "channels", "positions"), [(0, 3, 4), (2, 3, 0)])
def test_empty(samples: int, channels: int, positions: int) -> None:
    x, grad_y = torch.ones(samples, channels, 1, 1, positions, device=DEVICE), torch.ones(samples, 5, 1, 1, positions, device=DEVICE)
    want = [5.0 * positions**2] * samples
    assert Triton.direct(x, grad_y, None, None, LINEAR, True)[0].tolist() == want
    assert Triton.gram(x, grad_y, None, LINEAR, True, "gram").tolist() == want


@runs
def test_a_float_input_with_a_gradient_in_half_precision() -> None:
    x, grad_y, *_ = TILED["direct"].operands()
    want = reference.direct(x.cpu().double(), grad_y.half().cpu().double(), None, None, TILED["direct"].geometry, True)[0]
    Problem.close(Triton.direct(x, grad_y.half(), None, None, TILED["direct"].geometry, True)[0], want, want)


@runs
def test_asked_for_by_name() -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad_y = torch.randn(3, 4, 6, 6, generator=generator).to(DEVICE), torch.randn(3, 8, 3, 3, generator=generator).to(DEVICE)
    rows, grads = torch.randn(3, 7, 5, generator=generator).to(DEVICE), torch.randn(3, 7, 4, generator=generator).to(DEVICE)
    norms = []
    for backend in ("reference", "triton"):
        with fq.use_backend(backend):
            conv = fq.conv_grad_sq_norm(x, grad_y, 3, stride=2, padding=1, groups=2)
            norms.append(torch.stack([conv, fq.linear_grad_sq_norm(rows, grads)]))
    assert bool(((norms[0] - norms[1]).abs() <= TOLERANCE * norms[0]).all())
    with fq.use_backend("triton"):
        with pytest.raises(RuntimeError, match="float64 runs on the reference"):
            fq.linear_grad_sq_norm(rows.double(), grads.double())
        if not ON_GPU:
            with pytest.raises(RuntimeError, match="no bfloat16"):
                fq.linear_grad_sq_norm(rows.bfloat16(), grads.bfloat16())


COMPILE = """
import re, sys
from fastqat._bench.static_norms import gradient_norms
from fastqat._bench.static_triton import binary_of

for variant in gradient_norms():
    name = variant.kernel.__name__
    if name.startswith(("grad_norm_direct", "grad_norm_gram")) and variant.name in sys.argv[1:]:
        text = binary_of(variant, 90).asm["ptx"]
        half = "bfloat16" in variant.name
        assert ("wgmma.mma_async" in text) == half, (name, variant.name, "tensor cores for half precision, and for nothing else")
        assert not re.search(r"tf32|\\s(atom|red)\\.", text), (name, variant.name)
        assert "cp.async.cg.shared.global" in text, (name, variant.name, "no step is read ahead")
        print("checked", name, variant.name)
"""


def without_interpreter() -> dict[str, str]:
    return {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}


def test_compiled_for_sm_90_with_tensor_cores_and_reading_ahead() -> None:
    names = ["linear, float32", "linear, bfloat16", "3 × 3, bfloat16"]
    done = subprocess.run([sys.executable, "-c", COMPILE, *names], capture_output=True, text=True, env=without_interpreter(), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checked") == 6


def test_a_sample_compiled_for_other_architectures() -> None:
    command = [sys.executable, "-m", "fastqat._bench.static_report", "--only", "triton", "--archs", "80", "100", "--bad"]
    done = subprocess.run(
        [*command, "--filter", "direct_kernel 3 × 3, bfloat16"], capture_output=True, text=True, env=without_interpreter(), cwd=ROOT
    )
    assert done.returncode == 0 and "none with a problem" in done.stdout, done.stdout + done.stderr


@gpu
@pytest.mark.parametrize("name", TILED)
def test_captured_in_a_cuda_graph_without_waiting_for_the_device(name: str) -> None:
    problem = TILED[name]
    eager = problem.results()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = problem.results()
        graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for got, want in zip(captured, eager, strict=True):
        assert_same_bits(got, want)


@gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_a_resnet(dtype: torch.dtype, layout: str) -> None:
    for channels, outputs, side, kernel, stride in ((64, 64, 56, 3, 1), (256, 512, 28, 1, 2), (512, 512, 7, 3, 1), (3, 64, 112, 7, 2)):
        geometry = Geometry(1, (1, kernel, kernel), (1, stride, stride), (0, kernel // 2, kernel // 2), ONE)
        Problem(4, channels, outputs, (1, side, side), geometry, dtype, layout, layout, masked=True, sloped=True).check()
        Problem(4, channels, outputs, (1, side, side), geometry, dtype, layout, layout).check()
