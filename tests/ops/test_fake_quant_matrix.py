"""fake_quantize and quantize_codes over all that can be combined: each backend against the reference, the reference against numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import fastqat as fq
from fastqat import testing
from fastqat.ops.fake_quant import reference
from fastqat.ops.fake_quant.reference import Grid
from fastqat.testing import FakeQuantCase, FakeQuantInputs, assert_same_bits, assert_sum_close, pairwise

PLACES = [place for place in testing.places("fake_quant") if place != ("reference", "cpu")]  # what the reference equals by definition
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FACTOR = 0.37

# All below 64k elements, for the interpreter. Rows and columns end one before, at and one after a block.
SHAPES = [
    (3, 0, 2, 5), (1, 1, 1, 1), (3, 6, 7, 15), (2, 3, 1, 1023), (1, 2, 2, 1024), (1, 2, 2, 1025), (2, 1023, 3, 1), (2, 1024, 1, 2),
    (1, 1025, 2, 2), (1, 1, 1, 4095), (1, 1, 1, 4097), (63, 4, 2, 2), (65, 2, 4, 4), (2, 64, 16, 31),
]  # fmt: skip
FACTORS: dict[str, Any] = {
    "shape": SHAPES,
    "bits": range(2, 9),
    "granularity": list(testing.GRANULARITIES),
    "layout": testing.LAYOUTS,
    "zero_point": ["none", "inside", "outside", "fraction", "int32"],
    "values": ["hard", "random", "nan", "zeros"],
    "scales": ["any", "powers", "extreme"],
    "dtype": DTYPES,
    "signed": [True, False],
    "semantics": ["div", "reciprocal"],
}
CASES = [FakeQuantCase(**case) for case in pairwise(**FACTORS)]
SMALL = [FakeQuantCase(**case) for case in pairwise(**{**FACTORS, "shape": [(3, 0, 2, 5), (1, 1, 1, 1), (3, 6, 7, 15), (2, 4, 9, 8)]})]
LARGE = [
    FakeQuantCase(**case)
    for case in pairwise(
        granularity=list(testing.GRANULARITIES),
        dtype=DTYPES,
        layout=["contiguous", "channels_last"],
        shape=[(6, 66, 37, 29), (30_001, 3, 2, 3)],
        zero_point=["none", "inside"],
        semantics=["div", "reciprocal"],
        bits=[4, 8],
    )
]


def can_take(backend: str, device: str, case: FakeQuantCase | TieCase) -> bool:
    """Triton's interpreter has numpy's types, so no bfloat16, and takes minutes for a million elements."""
    return backend != "triton" or device == "cuda" or (case.dtype != torch.bfloat16 and math.prod(case.shape) <= 2**16)


def on_places(cases: Sequence[FakeQuantCase | TieCase]) -> Callable:
    """Parametrize by every backend, device and case that go together."""
    rows = [(*place, case) for place in PLACES for case in cases if can_take(*place, case)]
    return pytest.mark.parametrize(("backend", "device", "case"), rows, ids=str)


def run(backend: str, inputs: FakeQuantInputs) -> dict[str, Tensor]:
    """Values, codes and gradients, as a user gets them."""
    grad_y, grid = inputs.grad_y, inputs.grid
    x, scale = inputs.x.detach().requires_grad_(), grid.scale.clone().requires_grad_()
    zero_point = None if grid.zero_point is None else grid.zero_point.clone().requires_grad_(grid.zero_point.is_floating_point())
    options = grid._asdict()
    del options["scale"], options["zero_point"]
    with fq.use_backend(backend):
        y = fq.fake_quantize(x, scale, zero_point, **options, grad_factor=FACTOR)
        y.backward(grad_y)
        found = {"x_hat": y.detach(), "codes": fq.quantize_codes(x, scale, zero_point, **options), "grad_x": x.grad, "scale": scale.grad}
    return found | ({} if zero_point is None or zero_point.grad is None else {"zero point": zero_point.grad})


def check(got: dict[str, Tensor], inputs: FakeQuantInputs) -> None:
    """Values, codes and grad_x bit for bit the reference's; sums within the contract; layout as torch would choose."""
    x, grad_y, grid = inputs
    grad_x, *terms = reference.gradient_terms(grad_y, x, grid)
    assert_same_bits(got["x_hat"], reference.forward(x, grid), "x_hat")
    assert_same_bits(got["codes"], reference.codes(x, grid), "codes")
    assert_same_bits(got["grad_x"], grad_x.to(x.dtype), "grad_x")
    for name, each in zip(("scale", "zero point"), terms, strict=True):
        if name in got:
            assert_sum_close(got[name], *sums(each, inputs), f"gradient of the {name}")
    for name in ("x_hat", "codes"):
        assert got[name].stride() == torch.empty_like(x).stride(), name


def sums(terms: Tensor, inputs: FakeQuantInputs) -> tuple[Tensor, float, list[int] | None]:
    grouped, dims = inputs.terms(terms)
    return grouped, FACTOR, dims


@on_places(CASES)
def test_equals_the_reference(backend: str, device: str, case: FakeQuantCase) -> None:
    inputs = case.inputs(device)
    check(run(backend, inputs), inputs)


@on_places(LARGE)
def test_equals_the_reference_on_many_blocks(backend: str, device: str, case: FakeQuantCase) -> None:
    inputs = case.inputs(device)
    got = run(backend, inputs)
    check(got, inputs)
    for name, again in run(backend, inputs).items():
        assert_same_bits(again, got[name], f"second run: {name}")


RANGES = [(0, 2**bits - 1) for bits in range(2, 9)] + [(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in range(2, 9)]


class TieCase(NamedTuple):
    dtype: torch.dtype
    limits: tuple[int, int]
    granularity: str
    semantics: str
    scales: tuple[float, ...]
    zero_point: int | None
    shape: tuple[int, ...] = ()


def tied(case: TieCase, device: str) -> FakeQuantInputs:
    """Every tie, both neighbours of each, both ends of the range and the extremes, for each scale; one scale per tensor: of the first."""
    rows = torch.stack([testing.ties(scale, *case.limits) for scale in case.scales]).to(device, case.dtype)
    scale = torch.tensor(case.scales, device=device)
    if case.granularity == "tensor":
        rows, scale = rows[:1], scale[:1]
    x, axis, group_size = {
        "tensor": (rows, None, None),
        "rows": (rows, 0, None),
        "columns": (rows.t().contiguous(), 1, None),
        "groups": (rows.reshape(-1), 0, rows.shape[1]),
    }[case.granularity]
    grad_y = torch.linspace(-2, 3, x.numel(), device=device).reshape(x.shape).to(case.dtype)
    zero_point = None if case.zero_point is None else torch.full_like(scale, case.zero_point)
    return FakeQuantInputs(x, grad_y, Grid(scale, zero_point, *case.limits, axis, group_size, case.semantics))


TIES = [
    TieCase(**case)
    for case in pairwise(
        dtype=DTYPES,
        limits=RANGES,
        granularity=["tensor", "rows", "columns", "groups"],
        semantics=["div", "reciprocal"],
        scales=[(0.0371, 0.5, 3e-5), (0.25, 0.1, 1e4), (1.0, 0.3, 2.0**-23)],
        zero_point=[None, 1],
    )
]


@on_places(TIES)
def test_every_tie_neighbour_and_end(backend: str, device: str, case: TieCase) -> None:
    inputs = tied(case, device)
    check(run(backend, inputs), inputs)


def by_numpy(inputs: FakeQuantInputs) -> dict[str, np.ndarray]:
    """The contract in numpy: one scale at a time, masks by index, fp32."""
    shape, grid = inputs.x.shape, inputs.grid
    x, grad_y = (t.float().numpy() for t in (inputs.x, inputs.grad_y))
    found = {name: np.zeros(shape, np.float32) for name in ("x_hat", "codes", "grad_x", "scale", "zero point")}
    owner = testing.spread(torch.arange(grid.scale.numel()).reshape(grid.scale.shape), shape, grid.axis, grid.group_size).numpy()
    zeros = np.zeros(grid.scale.numel()) if grid.zero_point is None else np.rint(grid.zero_point.double().numpy().reshape(-1))
    for k, (s, z) in enumerate(zip(grid.scale.numpy().reshape(-1), zeros.astype(np.float32), strict=True)):
        mine = owner == k
        for name, values in one_scale(x[mine], grad_y[mine], s, z, grid).items():
            found[name][mine] = values
    return found


def one_scale(x: np.ndarray, g: np.ndarray, s: np.float32, z: np.float32, grid: Grid) -> dict[str, np.ndarray]:
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / s
        v = x / s if grid.semantics == "div" else x * inverse
        q = np.rint(v) + z
        c = np.clip(q, grid.qmin, grid.qmax)  # numpy's clip keeps NaN
        x_hat = (c - z) * s
        tested = v if grid.semantics == "div" else np.rint(v)
        inside = (tested >= grid.qmin - z) & (tested <= grid.qmax - z)
        above = tested > grid.qmax - z
        slope = np.rint(v) - v if grid.semantics == "div" else (np.rint(v) * s - x) * inverse
        end = np.where(above, grid.qmax - z, grid.qmin - z)
        nan = np.isnan(v)
        return {
            "x_hat": np.where(x_hat == 0, np.float32(0), x_hat),
            "codes": np.where(nan, grid.qmin, c),
            "grad_x": np.where(inside, g, np.float32(0)),
            "scale": np.where(nan, np.float32(np.nan), g * np.where(inside, slope, end)),
            "zero point": np.where(nan, np.float32(np.nan), np.where(inside, np.float32(0), -(g * s))),
        }


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_reference_equals_numpy(case: FakeQuantCase) -> None:
    inputs = case.inputs()
    got, want = run("reference", inputs), {name: torch.from_numpy(values) for name, values in by_numpy(inputs).items()}
    assert_same_bits(got["x_hat"], want["x_hat"].to(case.dtype), "x_hat")
    assert_same_bits(got["codes"], want["codes"].to(got["codes"].dtype), "codes")
    assert_same_bits(got["grad_x"], want["grad_x"].to(case.dtype), "grad_x")
    for name in ("scale", "zero point"):
        if name in got:
            assert_sum_close(got[name], *sums(want[name], inputs), name)


@pytest.mark.parametrize("granularity", testing.GRANULARITIES)
def test_the_gradients_of_the_reference_are_those_of_the_formula(granularity: str) -> None:
    """The semantics "div" in fp64 through autograd: rounding passed straight through, the ends of the range as constants."""
    inputs = FakeQuantCase(torch.float32, granularity, "contiguous", (4, 6, 5, 8), values="random").inputs()
    grid, grad_y = inputs.grid, inputs.grad_y.double()
    x, scale = inputs.x.double().requires_grad_(), grid.scale.double().requires_grad_()
    zero_point = torch.ones_like(scale).requires_grad_()
    y = fq.fake_quantize(x, scale, zero_point, **{k: getattr(grid, k) for k in ("qmin", "qmax", "axis", "group_size")})
    s, z = (testing.spread(t, x.shape, grid.axis, grid.group_size) for t in (scale, zero_point))
    v = x / s
    straight = v + (v.round() - v).detach()
    want = torch.where(v < grid.qmin - z, grid.qmin - z, torch.where(v > grid.qmax - z, grid.qmax - z, straight)) * s
    torch.testing.assert_close(y, want)
    leaves = (x, scale, zero_point)
    for got, expected in zip(torch.autograd.grad(y, leaves, grad_y), torch.autograd.grad(want, leaves, grad_y), strict=True):
        torch.testing.assert_close(got, expected)


def test_pairwise_meets_every_pair() -> None:
    cases = pairwise(**FACTORS)
    names = list(FACTORS)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            met = {(str(case[a]), str(case[b])) for case in cases}
            assert len(met) == len(FACTORS[a]) * len(FACTORS[b]), (a, b)
    assert len(cases) < 1.5 * len(SHAPES) * len(FACTORS["bits"])
