"""The Triton backend of gradient norms against the reference in fp64, on a GPU or interpreted, and what its kernels compile to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastqat as fq
from fastqat.ops.grad_norm import addresses, launch, tiling
from fastqat.ops.grad_norm.geometry import LINEAR, Geometry
from fastqat.testing import assert_same_bits, pairwise, places

from .grad_norm_problems import LAYOUTS, Problem, conv, problem

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent.parent
DEVICE = next((device for backend, device in places("grad_norm") if backend == "triton"), "none")
ON_GPU = DEVICE == "cuda"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
ONE, NONE = (1, 1, 1), (0, 0, 0)
runs = pytest.mark.skipif(DEVICE == "none", reason="needs a GPU or TRITON_INTERPRET=1")
gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


def check(given: Problem) -> list[torch.Tensor]:
    """Every form that serves the problem against the oracle; the norms of each, and inner products last."""
    norms, inner = given.check("triton", "direct", DEVICE)
    plain = given._replace(slope=None)
    return [norms, *([plain.check("triton", "gram", DEVICE)[0]] if given.mask is None else []), inner]


def again(given: Problem) -> list[torch.Tensor]:
    """The same results without the checks."""
    norms, inner = given.run("triton", "direct", DEVICE)
    plain = given._replace(slope=None)
    return [norms, *([plain.run("triton", "gram", DEVICE)[0]] if given.mask is None else []), inner]


GEOMETRIES = {
    "linear": ((1, 1, 20), LINEAR),
    "one position": ((1, 1, 1), LINEAR),
    "one window": ((1, 3, 2), Geometry(1, (1, 3, 3), ONE, (0, 0, 1), ONE)),
    "pointwise": ((1, 4, 5), LINEAR),
    "pointwise, stride": ((2, 6, 7), LINEAR._replace(stride=(1, 2, 3))),
    "pointwise, padding": ((1, 4, 5), LINEAR._replace(padding=(0, 1, 0))),
    "1-D": ((1, 1, 27), Geometry(1, (1, 1, 5), (1, 1, 2), (0, 0, 2), (1, 1, 3))),
    "2-D": ((1, 5, 6), Geometry(1, (1, 3, 3), ONE, (0, 1, 1), ONE)),
    "2-D, stride, dilation": ((1, 9, 8), Geometry(1, (1, 3, 2), (1, 2, 3), (0, 2, 0), (1, 2, 3))),
    "2-D, stride beyond the kernel": ((1, 9, 9), Geometry(1, (1, 2, 2), (1, 4, 3), NONE, ONE)),
    "3-D": ((3, 4, 4), Geometry(1, (2, 3, 2), (2, 1, 2), (1, 1, 0), (1, 1, 2))),
}
# channels, outputs, groups
WIDTHS = [(5, 3, 1), (9, 17, 1), (4, 8, 4), (6, 16, 2)]
CASES = pairwise(
    where=list(GEOMETRIES),
    width=WIDTHS,
    dtype=DTYPES,
    x_layout=list(LAYOUTS),
    grad_layout=[*LAYOUTS, "expanded"],
    extras=[(False, False, True), (True, False, False), (True, True, True), (False, True, False)],
)


@runs
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_against_autograd(case: dict[str, Any]) -> None:
    size, geometry = GEOMETRIES[case["where"]]
    channels, outputs, groups = case["width"]
    masked, sloped, bias = case["extras"]
    given = problem(2, channels, outputs, size, geometry._replace(groups=groups), case["dtype"], case["x_layout"], True, bias)
    first = given.grad_y[:, :, :1, :1, :1].expand(given.grad_y.shape)  # as after a sum
    grad_y = first if case["grad_layout"] == "expanded" else LAYOUTS[case["grad_layout"]](given.grad_y)
    check(given._replace(grad_y=grad_y, mask=given.mask if masked else None, slope=given.slope if sloped else None))


# More than one tile along every dimension of each kernel, or more than one step of its loops.
TILED = {
    "direct": conv(2, 4, 40, (4, 5), (3, 3), padding=1, factors=True),
    "direct, groups": conv(1, 8, 72, (3, 4), (3, 3), padding=1, groups=2),
    "grouped": conv(2, 20, 20, (5, 6), (3, 3), padding=1, groups=20, factors=True),
    "grouped, channels-last": conv(2, 20, 40, (6, 6), (3, 2), groups=20, layout="channels_last", factors=True),
    "gram, odd number of tiles": conv(2, 5, 6, (75,), (1,)),
    "gram, even number of tiles": conv(1, 5, 20, (110,), (1,)),
    "masked rows": conv(34, 37, 35, (1,), (1,), factors=True),
    "masked rows of groups": conv(34, 4, 70, (3, 3), (3, 3), groups=2, factors=True),
}


@runs
@pytest.mark.parametrize("given", TILED.values(), ids=TILED)
def test_many_tiles(given: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right, with every output and every part written, and the same bits on every run."""
    original = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: original(*args, **kwargs).fill_(torch.nan))
    for one, two in zip(check(given), again(given), strict=True):
        assert_same_bits(one, two)


@runs
def test_rows_of_more_than_one_step() -> None:
    conv(3, 1100, 1030, (1,), (1,)).check("triton", "gram", DEVICE)


@runs
@pytest.mark.parametrize("name", ["direct", "grouped"])
def test_programs_of_several_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples in programs of two have the bits that they have one by one."""
    given = TILED[name]
    given = given._replace(x=torch.cat([given.x, given.x[:1]]), grad_y=torch.cat([given.grad_y, given.grad_y[1:]]))
    alone = again(given)
    for each in ("direct_tiling", "grouped_tiling"):
        monkeypatch.setattr(launch, each, in_pairs(getattr(tiling, each)))
    for got, want in zip(again(given), alone, strict=True):
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
    narrow = addresses.addresses
    monkeypatch.setattr(launch, "addresses", lambda *args: narrow(*args)._replace(wide=True))
    check(problem(1, 4, 8, size, geometry, factors=True))
    for groups in (1, 4):
        check(problem(1, 4, 8, size, geometry._replace(groups=groups)))


def test_large_samples_take_64_bits() -> None:
    x = torch.empty(2, 2, 1, 1, 2**30 + 1, device="meta")
    assert not addresses.addresses(x[..., 1:].contiguous(), x[..., 1:].contiguous(), LINEAR).wide
    assert addresses.addresses(x, x, LINEAR).wide


@runs
def test_cancelling_positions_never_give_a_negative_norm() -> None:
    x, grad_y = torch.ones(2, 3, 1, 1, 40), torch.full((2, 5, 1, 1, 40), 1e3)
    x[..., 1::2] = -1.0 - 2.0**-20
    Problem(x, grad_y, LINEAR, bias=False).check("triton", "gram", DEVICE)


@runs
def test_nan_reaches_only_its_own_sample() -> None:
    x = TILED["direct"].x.clone()
    x[1, 3, 0, 2, 2] = torch.nan
    for norms in again(TILED["direct"]._replace(x=x, mask=None, slope=None))[:2]:
        assert norms.isnan().tolist() == [False, True]


@runs
@pytest.mark.parametrize(("samples", "positions"), [(0, 4), (2, 0)])
def test_empty(samples: int, positions: int) -> None:
    given = Problem(torch.ones(samples, 3, 1, 1, positions), torch.ones(samples, 5, 1, 1, positions), LINEAR)
    direct, gram, _ = again(given)
    assert direct.tolist() == gram.tolist() == [0.0] * samples


@runs
def test_a_float_input_with_a_gradient_in_half_precision() -> None:
    given = TILED["direct"]
    given._replace(grad_y=given.grad_y.half()).check("triton", "direct", DEVICE)


@runs
def test_asked_for_by_name() -> None:
    x, grad_y = torch.ones(3, 7, 5, device=DEVICE), torch.ones(3, 7, 4, device=DEVICE)
    with fq.use_backend("triton"):
        assert fq.linear_grad_sq_norm(x, grad_y).tolist() == [49.0 * 24] * 3
        with pytest.raises(RuntimeError, match="float64 runs on the reference"):
            fq.linear_grad_sq_norm(x.double(), grad_y.double())
        if not ON_GPU:
            with pytest.raises(RuntimeError, match="no bfloat16"):
                fq.linear_grad_sq_norm(x.bfloat16(), grad_y.bfloat16())


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
    names = ["linear, float32", "3 × 3, bfloat16"]
    done = subprocess.run([sys.executable, "-c", COMPILE, *names], capture_output=True, text=True, env=without_interpreter(), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checked") == 4


def test_a_sample_compiled_for_other_architectures() -> None:
    command = [sys.executable, "-m", "fastqat._bench.static_report", "--only", "triton", "--archs", "80", "100", "--bad"]
    done = subprocess.run(
        [*command, "--filter", "direct_kernel 3 × 3, bfloat16"], capture_output=True, text=True, env=without_interpreter(), cwd=ROOT
    )
    assert done.returncode == 0 and "none with a problem" in done.stdout, done.stdout + done.stderr


@gpu
@pytest.mark.parametrize("name", TILED)
def test_captured_in_a_cuda_graph_without_waiting_for_the_device(name: str) -> None:
    x, grad_y, geometry, mask, slope, bias = TILED[name]
    operands = [None if t is None else t.cuda() for t in (x, grad_y, mask, slope)]

    def call() -> tuple[torch.Tensor, ...]:
        norms, inner = launch.Triton.direct(*operands, geometry, bias)
        return norms, launch.Triton.gram(*operands[:2], None, geometry, bias, "gram"), norms if inner is None else inner

    eager = call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
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
        options = {"stride": stride, "padding": kernel // 2, "dtype": dtype, "layout": layout}
        for factors in (False, True):
            check(conv(4, channels, outputs, (side, side), (kernel, kernel), factors=factors, **options))  # type: ignore[arg-type]  # by name
