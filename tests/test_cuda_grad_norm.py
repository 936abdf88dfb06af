"""The CUDA kernels of the per-sample gradient norms: compiled by g++ and run on the CPU, and on a GPU where the cuda backend has one."""

from __future__ import annotations

import mmap
import shutil
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastqat._backend import backends_for
from fastqat.ops.grad_norm import reference
from fastqat.ops.grad_norm.geometry import LINEAR, Geometry, positions_last
from fastqat.testing import assert_same_bits, pairwise

from .native.grad_norm import GradNormOnDevice, GradNormOnHost, drawn
from .native.on_host import STORAGE

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install hypothesis")
from hypothesis import given, settings  # noqa: E402  # after the skip
from hypothesis import strategies as st  # noqa: E402

Kernels = GradNormOnHost | type[GradNormOnDevice]


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> GradNormOnHost:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the CUDA kernels for the CPU")
    return GradNormOnHost(tmp_path_factory.mktemp("grad_norm_on_host"))


@pytest.fixture(scope="module", params=["host", "device"] if "cuda" in backends_for("grad_norm", "cuda") else ["host"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return request.getfixturevalue("on_host") if request.param == "host" else GradNormOnDevice


def conv2d(kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Geometry:
    return Geometry(1, (1, kernel, kernel), (1, stride, stride), (0, padding, padding), (1, dilation, dilation))


class Window(NamedTuple):
    """Spatial size of x and how the kernel moves over it."""

    size: tuple[int, int, int]
    geometry: Geometry


WINDOWS = {
    "linear": Window((1, 1, 12), LINEAR),
    "one position": Window((1, 1, 1), LINEAR),
    "one position, padded": Window((1, 1, 1), conv2d(3, padding=1)),
    "1x1": Window((1, 8, 8), conv2d(1)),
    "1x1, stride 2": Window((1, 7, 9), conv2d(1, stride=2)),
    "3x3": Window((1, 9, 7), conv2d(3, padding=1)),
    "3x3, stride 2": Window((1, 10, 8), conv2d(3, stride=2, padding=1)),
    "2x2, stride 3": Window((1, 11, 8), conv2d(2, stride=3)),
    "5x5, dilated": Window((1, 9, 9), conv2d(5, padding=4, dilation=2)),
    "1-D": Window((1, 1, 70), Geometry(1, (1, 1, 9), (1, 1, 1), (0, 0, 4), (1, 1, 1))),
    "3-D": Window((3, 5, 6), Geometry(1, (3, 2, 3), (2, 1, 1), (1, 0, 2), (1, 2, 1))),
}
WIDTHS = [(3, 5, 1), (16, 24, 1), (24, 72, 1), (40, 130, 1), (8, 8, 8), (36, 36, 36), (6, 12, 6), (32, 32, 8), (24, 12, 3)]  # C, O, groups
LAYOUTS = ["contiguous", "channels_last", "permuted", "sliced", "misaligned"]
CASES = pairwise(
    window=list(WINDOWS), widths=WIDTHS, dtype=STORAGE, layout=LAYOUTS, weights=["none", "mask", "slope", "both"], bias=[True, False]
)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of x ``[N, C, D, H, W]`` with other strides."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "permuted":
        return x.permute(4, 1, 2, 0, 3).contiguous().permute(3, 1, 2, 4, 0)
    if layout == "misaligned":
        return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    return torch.stack([x, x], -1)[..., 0] if layout == "sliced" else x.contiguous()


def weights_of(x: Tensor, grad_y: Tensor, geometry: Geometry, which: str) -> tuple[Tensor | None, Tensor | None]:
    """A mask of zeros and ones and a slope, where `which` has them."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(geometry.weight_shape(x, grad_y), generator=generator)
    return (values > -1).float() if which in ("mask", "both") else None, values if which in ("slope", "both") else None


def exact(
    x: Tensor, grad_y: Tensor, geometry: Geometry, bias: bool, mask: Tensor | None = None, slope: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The reference in fp64 on the same values."""
    mask, slope = (None if each is None else each.double() for each in (mask, slope))
    return reference.direct(x.double(), grad_y.double(), mask, slope, geometry, bias)


def assert_close(got: Tensor, want: Tensor, size: Tensor | None = None) -> None:
    """Within 10⁻⁶ of `size`, by default of the values: ten times what fp32 sums over so few positions lose."""
    scale = want.abs() if size is None else size
    assert bool(((got - want).abs() <= 1e-6 * scale + 1e-30).all()), f"{got} against {want}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_kernels_are_the_reference(kernels: Kernels, case: dict) -> None:
    size, geometry = WINDOWS[case["window"]]
    channels, outputs, groups = case["widths"]
    geometry = geometry._replace(groups=groups)
    x, grad_y = (laid_out(t.to(case["dtype"]), case["layout"]) for t in drawn((3, channels, *size), outputs, geometry))
    mask, slope = weights_of(x, grad_y, geometry, case["weights"])
    want, want_inner = exact(x, grad_y, geometry, case["bias"], mask, slope)
    sq_norm, inner = kernels.direct(x, grad_y, mask, slope, geometry, case["bias"])
    assert_close(sq_norm, want)
    if want_inner is not None:
        assert_close(inner, want_inner, want_inner.abs().amax(1, keepdim=True))
    assert_close(kernels.gram(x, grad_y, None, geometry, case["bias"], "gram"), exact(x, grad_y, geometry, case["bias"])[0])


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], int, Geometry]:
    """Shape of x, outputs and geometry of a small convolution that has at least one output position."""
    groups, kernel, stride, dilation, padding = draw(st.sampled_from([1, 1, 2, 5, 33])), [], [], [], []
    size = []
    for most in (2, 3, 4):
        kernel.append(draw(st.integers(1, most)))
        stride.append(draw(st.integers(1, 3)))
        dilation.append(draw(st.integers(1, 2)))
        padding.append(draw(st.integers(0, 3)))
        reach = dilation[-1] * (kernel[-1] - 1) + 1
        size.append(draw(st.integers(max(1, reach - 2 * padding[-1]), reach + 5)))
    channels, outputs = (groups * draw(st.integers(1, 40 // groups + 1)) for _ in range(2))
    geometry = Geometry(groups, *map(tuple, (kernel, stride, padding, dilation)))  # type: ignore[arg-type]  # three of each
    return (2, channels, *size), outputs, geometry


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(drawn_case=convolutions(), dtype=st.sampled_from(STORAGE), layout=st.sampled_from(LAYOUTS), which=st.sampled_from(["none", "both"]))
def test_any_convolution(
    kernels: Kernels, drawn_case: tuple[tuple[int, ...], int, Geometry], dtype: torch.dtype, layout: str, which: str
) -> None:
    shape, outputs, geometry = drawn_case
    x, grad_y = (laid_out(t.to(dtype), layout) for t in drawn(shape, outputs, geometry))
    mask, slope = weights_of(x, grad_y, geometry, which)
    assert_close(kernels.direct(x, grad_y, mask, slope, geometry, True)[0], exact(x, grad_y, geometry, True, mask)[0])
    assert_close(kernels.gram(x, grad_y, None, geometry, True, "gram"), exact(x, grad_y, geometry, True)[0])


# C, O, groups, and the tile over all its groups: few channels, many, a few per group, one, two outputs for each channel.
TILES = [(20, 24, 1, 32, 32), (96, 100, 1, 64, 128), (64, 64, 16, 32, 256), (70, 70, 70, 32, 320), (70, 140, 70, 32, 320)]


@pytest.mark.parametrize(("channels", "outputs", "groups", "rows", "columns"), TILES)
def test_every_tile_at_its_edges_in_any_order(
    on_host: GradNormOnHost, channels: int, outputs: int, groups: int, rows: int, columns: int
) -> None:
    geometry = conv2d(3, padding=1)._replace(groups=groups)
    x, grad_y = drawn((2, channels, 1, 7, 7), outputs, geometry)
    assert on_host.chosen(x, grad_y, geometry)[2:] == (rows, columns)
    mask, slope = weights_of(x, grad_y, geometry, "both")
    results = [on_host.direct(x, grad_y, mask, slope, geometry, True), on_host.gram(x, grad_y, None, geometry, True, "gram")]
    assert_close(results[0][0], exact(x, grad_y, geometry, True, mask)[0])
    on_host.library.set_backwards(True)  # blocks and threads take their turns in the other order: a race would show
    try:
        again = [on_host.direct(x, grad_y, mask, slope, geometry, True), on_host.gram(x, grad_y, None, geometry, True, "gram")]
    finally:
        on_host.library.set_backwards(False)
    for got, want in zip((*again[0], again[1]), (*results[0], results[1]), strict=True):
        assert_same_bits(got, want)


READ_AS = {
    ("contiguous", 8): ("positions", "position vectors"),
    ("contiguous", 7): ("positions", "positions"),
    ("channels_last", 7): ("channel vectors", "channel vectors"),
    ("permuted", 8): ("channels", "channels"),
    ("misaligned", 8): ("positions", "positions"),
    ("sliced", 8): ("positions", "positions"),
}


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize(("layout", "side"), READ_AS)
def test_every_layout_gives_the_same_bits(on_host: GradNormOnHost, kernels: Kernels, layout: str, side: int, dtype: torch.dtype) -> None:
    geometry = conv2d(3, padding=1)
    x, grad_y = (t.to(dtype) for t in drawn((2, 16, 1, side, side), 32, geometry))
    moved = laid_out(x, layout), laid_out(grad_y, layout)
    assert on_host.chosen(*moved, geometry)[:2] == READ_AS[layout, side]
    assert_same_bits(kernels.direct(*moved, None, None, geometry, True)[0], kernels.direct(x, grad_y, None, None, geometry, True)[0])
    assert_same_bits(kernels.gram(*moved, None, geometry, True, "gram"), kernels.gram(x, grad_y, None, geometry, True, "gram"))


def test_a_linear_layer_is_read_along_its_features(on_host: GradNormOnHost) -> None:
    x, grad_y = torch.randn(2, 5, 32), torch.randn(2, 5, 64)
    assert on_host.chosen(positions_last(x), positions_last(grad_y), LINEAR)[:2] == ("channel vectors", "channel vectors")


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_a_sample_does_not_feel_its_batch(kernels: Kernels, form: str) -> None:
    geometry = conv2d(3, stride=2, padding=1)
    x, grad_y = drawn((5, 24, 1, 9, 9), 40, geometry)

    def norms(x: Tensor, grad_y: Tensor) -> Tensor:
        if form == "gram":
            return kernels.gram(x, grad_y, None, geometry, True, "gram")
        return kernels.direct(x, grad_y, None, None, geometry, True)[0]

    together = norms(x, grad_y)
    assert_same_bits(torch.cat([norms(x[n : n + 1], grad_y[n : n + 1]) for n in range(5)]), together)


@pytest.mark.parametrize("shape", [(0, 3, 1, 4, 4), (2, 3, 1, 0, 4), (2, 0, 1, 4, 4)], ids=str)
def test_empty(kernels: Kernels, shape: tuple[int, ...]) -> None:
    x, grad_y = torch.randn(shape), torch.randn(shape[0], 6, *shape[2:])
    slope = torch.randn(6, shape[1], 1, 1, 1)
    sq_norm, inner = kernels.direct(x, grad_y, None, slope, conv2d(1), False)
    assert sq_norm.equal(torch.zeros(shape[0])) and inner is not None and inner.equal(torch.zeros(shape[0], 6))
    assert kernels.gram(x, grad_y, None, conv2d(1), False, "gram").equal(torch.zeros(shape[0]))


def test_what_cancels_is_small_and_never_negative(kernels: Kernels) -> None:
    """Two halves of the positions with opposite outputs: the gradient is the rounding of the inputs alone."""
    half = torch.randn(4, 32, 1, 1, 40), torch.randn(4, 48, 1, 1, 40)
    x, grad_y = torch.cat([half[0], half[0]], 4), torch.cat([half[1], -half[1]], 4)
    size = (x.square().sum(1).sqrt() * grad_y.square().sum(1).sqrt()).sum((1, 2, 3)).square()
    for got in (kernels.direct(x, grad_y, None, None, LINEAR, True)[0], kernels.gram(x, grad_y, None, LINEAR, True, "gram")):
        assert bool((got >= 0).all()) and bool((got <= 1e-6 * size).all())


def test_offsets_beyond_31_bits(on_host: GradNormOnHost) -> None:
    """Two samples 2³¹ elements apart, in memory that is taken only where it is written."""
    memory = mmap.mmap(-1, 2 * (2**31 + 64))
    x = torch.frombuffer(memory, dtype=torch.bfloat16).as_strided((2, 2, 1, 1, 16), (2**31, 16, 1, 1, 1))
    grad_y = torch.randn(2, 3, 1, 1, 16).bfloat16()
    x.copy_(torch.randn(2, 2, 1, 1, 16))
    for got in (on_host.direct(x, grad_y, None, None, LINEAR, True)[0], on_host.gram(x, grad_y, None, LINEAR, True, "gram")):
        assert_close(got, exact(x, grad_y, LINEAR, True)[0])


def test_deep_products_in_parts(kernels: Kernels) -> None:
    """More columns than a part of the depth takes, few positions: several blocks for one tile."""
    geometry = conv2d(3, padding=1)
    x, grad_y = drawn((2, 300, 1, 4, 4), 64, geometry)
    assert_close(kernels.gram(x, grad_y, None, geometry, True, "gram"), exact(x, grad_y, geometry, True)[0])
