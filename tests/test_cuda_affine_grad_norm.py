"""The CUDA kernels of layers with an affine part: compiled by g++ and run on the CPU, and on a GPU where the cuda backend has one."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from fastqat._backend import backends_for
from fastqat.ops.affine_grad_norm import reference
from fastqat.ops.affine_grad_norm.layout import arranged
from fastqat.ops.affine_grad_norm.reference import KINDS, Statistics
from fastqat.testing import assert_same_bits, pairwise

from .native.affine_grad_norm import AffineOnDevice, AffineOnHost
from .native.on_host import STORAGE

Kernels = AffineOnHost | type[AffineOnDevice]


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> AffineOnHost:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the CUDA kernels for the CPU")
    return AffineOnHost(tmp_path_factory.mktemp("affine_on_host"))


@pytest.fixture(scope="module", params=["host", "device"] if "cuda" in backends_for("affine_grad_norm", "cuda") else ["host"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return request.getfixturevalue("on_host") if request.param == "host" else AffineOnDevice


def statistics_of(kind: str, channels: int, groups: int) -> Statistics:
    generator = torch.Generator().manual_seed(2)
    if kind != "given":
        return Statistics(kind, groups=groups, eps=1e-5)
    return Statistics(kind, torch.randn(channels, generator=generator), torch.rand(channels, generator=generator), eps=1e-3)


def exact(x: Tensor, grad_y: Tensor, statistics: Statistics, weight: bool, bias: bool) -> Tensor:
    """The reference in fp64 on the same values."""
    mean, var = (None if each is None else each.double() for each in (statistics.mean, statistics.var))
    return reference.sq_norm(x.double(), grad_y.double(), statistics._replace(mean=mean, var=var), weight, bias)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of x ``[N, C, T]`` with other strides."""
    if layout == "channels last":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "gaps":
        return torch.cat([x, x[..., :1]], 2)[..., : x.shape[2]]
    if layout == "misaligned":
        return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    return x.contiguous()


# C, groups, T: fewer than a vector, whole vectors, one behind them, more than a warp takes and more than a block.
SHAPES = [(1, 1, 1), (3, 1, 5), (8, 4, 16), (24, 3, 49), (264, 8, 17), (40, 40, 130), (6, 2, 2100), (2304, 1, 3)]
LAYOUTS = ["contiguous", "channels last", "gaps", "misaligned"]
CASES = pairwise(kind=KINDS, shape=SHAPES, layout=LAYOUTS, dtype=STORAGE, parts=[(True, True), (True, False), (False, True)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_kernels_are_the_reference(kernels: Kernels, case: dict) -> None:
    channels, groups, positions = case["shape"]
    generator = torch.Generator().manual_seed(0)
    x, grad_y = (laid_out(torch.randn(3, channels, positions, generator=generator).to(case["dtype"]), case["layout"]) for _ in range(2))
    statistics = statistics_of(case["kind"], channels, groups if case["kind"] == "group" else 1)
    got, want = kernels.sq_norm(x, grad_y, statistics, *case["parts"]), exact(x, grad_y, statistics, *case["parts"])
    assert bool(((got - want).abs() <= 2e-6 * want + 1e-12).all()), f"{got} against {want}"


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_threads_does_not_matter(on_host: AffineOnHost, kind: str, layout: str) -> None:
    x, grad_y = (laid_out(torch.randn(2, 72, 300), layout) for _ in range(2))
    statistics = statistics_of(kind, 72, 4 if kind == "group" else 1)
    want = on_host.sq_norm(x, grad_y, statistics, True, True)
    on_host.library.set_backwards(True)
    try:
        assert_same_bits(on_host.sq_norm(x, grad_y, statistics, True, True), want)
    finally:
        on_host.library.set_backwards(False)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("kind", ["group", "position"])
def test_a_mean_far_from_zero_costs_no_digits(kernels: Kernels, kind: str, layout: str) -> None:
    x, grad_y = (laid_out(torch.randn(2, 64, 50), layout) for _ in range(2))
    far = (x + 1000.0).contiguous() if layout == "contiguous" else x + 1000.0
    statistics = statistics_of(kind, 64, 4 if kind == "group" else 1)
    assert arranged(far, grad_y, kind == "position").channels_inner == (kind == "position" or layout == "channels last")
    got, want = kernels.sq_norm(far, grad_y, statistics, True, False), exact(far, grad_y, statistics, True, False)
    assert bool(((got - want).abs() <= 2e-6 * want).all()), f"{got} against {want}"


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_shows(kernels: Kernels, kind: str, layout: str) -> None:
    x, grad_y = (laid_out(torch.randn(3, 8, 12), layout) for _ in range(2))
    x[1, 3, 4] = torch.nan
    got = kernels.sq_norm(x, grad_y, statistics_of(kind, 8, 2 if kind == "group" else 1), True, True)
    assert got.isnan().tolist() == [False, True, False]
