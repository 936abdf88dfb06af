"""The CUDA kernels of logit_scores and grand_last: compiled by g++ and run on the CPU, and on a GPU where the cuda backend has one."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import Tensor

from fastqat._backend import backends_for
from fastqat.ops.grand_last import reference as norm_reference
from fastqat.ops.logit_scores import reference
from fastqat.testing import assert_same_bits, pairwise

from .native.logits import LogitsOnDevice, LogitsOnHost
from .native.on_host import STORAGE
from .ops.logit_cases import CASES, Oracle, some_targets

Kernels = LogitsOnHost | type[LogitsOnDevice]
RTOL, ATOL = 1e-5, 1e-12  # the contract
# One thread for a row, a few, a warp, a block that holds it, and one that reads it again; whole chunks of a thread and parts of one.
ROWS = {1: 5, 2: 40, 10: 40, 100: 12, 1000: 6, 1027: 3, 4104: 2, 8200: 2}


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> LogitsOnHost:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the CUDA kernels for the CPU")
    return LogitsOnHost(tmp_path_factory.mktemp("logits_on_host"))


@pytest.fixture(scope="module", params=["host", "device"] if "cuda" in backends_for("logit_scores", "cuda") else ["host"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return request.getfixturevalue("on_host") if request.param == "host" else LogitsOnDevice


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("classes", ROWS)
def test_accuracy(kernels: Kernels, classes: int, case: str) -> None:
    logits, teacher = CASES[case](ROWS[classes], classes)
    targets = some_targets(logits)
    got, oracle = kernels.scores(logits, targets, teacher), Oracle(logits)
    for name, want in oracle.scores(targets, Oracle(teacher)).items():
        excess = np.abs(got[name].numpy() - want) - (RTOL * np.abs(want) + ATOL)
        worst = int(excess.argmax())
        assert excess[worst] <= 0, f"{name}[{worst}] is {got[name][worst]}, not {want[worst]}"
    assert got["correct"].tolist() == (oracle.top == targets.numpy()).tolist()


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of x with other strides, or from another address."""
    n, c = x.shape
    if layout == "gaps":
        return torch.full((n, c + 9), torch.nan, dtype=x.dtype)[:, 1 : c + 1].copy_(x)
    if layout == "aligned gaps":
        return torch.full((n, -(-c // 8) * 8 + 8), torch.nan, dtype=x.dtype)[:, :c].copy_(x)
    if layout == "misaligned":
        return torch.empty(n * c + 1, dtype=x.dtype)[1:].view(n, c).copy_(x)
    return x[:1].expand(n, c) if layout == "expanded" else x.clone()


def drawn(kind: str, logits: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Targets of a kind: classes, or probabilities, which the model has learned in every second row."""
    if kind == "soft":
        soft = torch.rand(logits.shape).where(torch.rand(logits.shape) < 0.5, 0)
        soft[::2] = logits[::2].double().softmax(1).float()
        return soft.to(dtype)
    return some_targets(logits) if kind == "hard" else None


LAYOUTS = ["contiguous", "gaps", "aligned gaps", "misaligned", "expanded"]
FUZZ = pairwise(
    classes=[1, 3, 16, 37, 256, 1001, 4096, 4112, 9001], dtype=STORAGE, teacher=[None, *STORAGE], layout=LAYOUTS,
    targets=["none", "hard", "soft"], soft=STORAGE, teacher_layout=LAYOUTS, distance=[0.0, 1e-3, 3.0],
)  # fmt: skip


@pytest.mark.parametrize("case", FUZZ, ids=lambda case: "-".join(map(str, case.values())))
def test_any_types_and_layouts(kernels: Kernels, case: dict) -> None:
    rows = min(70, 2 + 6000 // case["classes"])
    logits = laid_out((4 * torch.randn(rows, case["classes"])).to(case["dtype"]), case["layout"])
    targets = drawn(case["targets"], logits, case["soft"])
    if case["targets"] == "soft":
        targets = laid_out(targets, case["teacher_layout"])
    near = (logits + 7 + case["distance"] * torch.randn(logits.shape)).to(case["teacher"] or torch.float32)
    teacher = None if case["teacher"] is None else laid_out(near, case["teacher_layout"])
    wide = [None if t is None else t.double() if t.is_floating_point() else t for t in (logits, targets, teacher)]
    got, want = kernels.scores(logits, targets, teacher), reference.forward(*wide)
    for (name, values), exact in zip(got.items(), want, strict=True):
        torch.testing.assert_close(values.to(exact.dtype), exact, rtol=RTOL, atol=ATOL, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("classes", [1, 12, 1000, 1500, 8200])
def test_bits_depend_on_the_values_of_the_row_alone(kernels: Kernels, classes: int) -> None:
    """Not on its neighbours, of which some are compared twice, on its address or on the stride."""
    logits, distance = torch.randn(9, classes).bfloat16(), torch.tensor([1e-6, 3.0, 0.0]).repeat(3)[:, None]
    teacher, targets = logits + distance * torch.randn(logits.shape), some_targets(logits)
    want = kernels.scores(logits, targets, teacher)
    for layout in LAYOUTS[:-1]:
        got = kernels.scores(laid_out(logits, layout), targets, laid_out(teacher, layout))
        for name, values in got.items():
            assert_same_bits(values, want[name], f"{layout}: {name}")
    for i in range(9):
        for name, values in kernels.scores(logits[i : i + 1], targets[i : i + 1], teacher[i : i + 1]).items():
            assert_same_bits(values, want[name][i : i + 1], f"row {i}: {name}")


@pytest.mark.parametrize("classes", [20, 1000, 1500, 8200])
def test_the_order_of_threads_does_not_matter(on_host: LogitsOnHost, classes: int) -> None:
    logits, teacher, features = torch.randn(5, classes), torch.randn(5, classes), torch.randn(5, 300)
    soft, targets = torch.rand(5, classes), some_targets(logits)
    for run in (lambda: on_host.scores(logits, soft, teacher), lambda: {"norm": on_host.norms(logits, targets, features, True)}):
        want = run()
        on_host.library.set_backwards(True)
        try:
            for name, values in run().items():
                assert_same_bits(values, want[name], name)
        finally:
            on_host.library.set_backwards(False)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("classes", [1, 3, 40, 1100, 8200])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_without_scores_are_nan_and_no_others(kernels: Kernels, bad: float, classes: int, kind: str) -> None:
    clean, teacher = torch.randn(6, classes), torch.randn(6, classes)
    targets = torch.rand(6, classes) if kind == "soft" else torch.zeros(6, dtype=torch.int64)
    logits, bad_teacher = clean.clone(), teacher.clone()
    where = slice(None) if bad == -torch.inf else -1  # a row is lost where all classes are masked
    logits[1, where if bad == -torch.inf else 0] = logits[2, where] = bad_teacher[4, where] = bad
    got, want = kernels.scores(logits, targets, bad_teacher), kernels.scores(clean, targets, teacher)
    for name, values in got.items():
        spoilt = [1, 2, 4] if name in ("ds", "res", "kd") else [1, 2]
        kept = [i for i in range(6) if i not in spoilt]
        assert_same_bits(values[kept], want[name][kept], name)
        assert not values[spoilt].any() if name == "correct" else values[spoilt].isnan().all(), name


@pytest.mark.parametrize("classes", [30, 1100, 8200])
def test_masked_classes_do_not_count(kernels: Kernels, classes: int) -> None:
    logits, teacher, targets = torch.randn(4, classes), torch.randn(4, classes), torch.randint(0, classes, (4,))
    behind, before = (torch.full((4, count), -torch.inf) for count in (700, 300))
    want = kernels.scores(logits, targets, teacher)
    masked = torch.cat([before, logits, behind], 1)
    got = kernels.scores(masked, targets + 300, torch.cat([before, teacher, behind], 1))
    for name, values in got.items():
        torch.testing.assert_close(values, want[name], rtol=3e-6, atol=1e-12)
    lost = kernels.scores(masked, targets, torch.cat([before.nan_to_num(neginf=0), teacher, behind], 1))
    assert lost["kd"].isinf().all() and lost["ds"].isfinite().all() and lost["res"].isfinite().all()
    assert lost["loss"].isinf().tolist() == (targets < 300).tolist()


@pytest.mark.parametrize("classes", [40, 1000, 3000, 8200])
def test_the_first_of_equal_maxima_is_the_prediction(kernels: Kernels, classes: int) -> None:
    logits, places = torch.zeros(3, classes), torch.tensor([7, classes // 2, classes - 1])
    logits[:, places] = 2.0
    got = kernels.scores(logits, places, None)
    assert got["correct"].tolist() == [True, False, False] and got["margin"].tolist() == [0.0] * 3
    soft = torch.zeros(3, classes)
    soft[0, places] = soft[1, places[1:]] = soft[2, 0] = 0.25
    assert kernels.scores(logits, soft, None)["correct"].tolist() == [True, False, False]


@pytest.mark.parametrize("classes", [5, 1000, 8200])
def test_a_target_that_is_none_gives_nan(kernels: Kernels, classes: int) -> None:
    logits, teacher, features = torch.randn(4, classes), torch.randn(4, classes), torch.randn(4, 6)
    targets = torch.tensor([0, classes, -1, 2])
    got = kernels.scores(logits, targets, teacher)
    for name in ("loss", "evs"):
        assert got[name].isnan().tolist() == [False, True, True, False]
    assert not got["correct"][1:3].any() and got["ds"].isfinite().all() and got["entropy"].isfinite().all()
    assert kernels.norms(logits, targets, features, True).isnan().tolist() == [False, True, True, False]
    soft = torch.rand(4, classes)
    soft[1, 0], soft[2, -1], soft[3, 1] = -0.5, torch.inf, torch.nan
    got = kernels.scores(logits, soft, teacher)
    for name in ("loss", "evs"):
        assert got[name].isnan().tolist() == [False, True, True, True]
    assert not got["correct"][1:].any() and got["ds"].isfinite().all()


def test_rows_lie_beyond_32_bits(kernels: Kernels) -> None:
    memory = torch.empty(2**31 + 64, dtype=torch.bfloat16)  # of which only the rows are touched
    logits = memory.as_strided((2, 50), (2**31, 1)).copy_(torch.randn(2, 50))
    got, want = kernels.scores(logits, None, None), kernels.scores(logits.clone(memory_format=torch.contiguous_format), None, None)
    for name, values in got.items():
        assert_same_bits(values, want[name], name)


def test_no_rows(kernels: Kernels) -> None:
    empty = torch.empty(0, 5)
    assert [len(values) for values in kernels.scores(empty, torch.empty(0, dtype=torch.int64), empty).values()] == [0] * 9
    assert len(kernels.norms(empty, torch.empty(0, dtype=torch.int64), empty, True)) == 0


NORMS = pairwise(
    classes=[1, 10, 1000, 1500], width=[0, 1, 64, 513, 2050], dtype=STORAGE, features=STORAGE, layout=LAYOUTS, bias=[True, False],
    margin=[0.0, 12.0, -30.0, 30.0],
)  # fmt: skip


@pytest.mark.parametrize("case", NORMS, ids=lambda case: "-".join(map(str, case.values())))
def test_norm_of_the_last_layer(kernels: Kernels, case: dict) -> None:
    """Of targets that are learned, and of those that are far from it."""
    rows = 9
    logits, targets = 3 * torch.randn(rows, case["classes"]), torch.randint(0, case["classes"], (rows,))
    logits[torch.arange(rows), targets] += case["margin"]
    logits = laid_out(logits.to(case["dtype"]), case["layout"])
    features = torch.randn(rows, case["width"]).to(case["features"])
    features = laid_out(features, case["layout"]) if case["width"] else features
    got = kernels.norms(logits, targets, features, case["bias"])
    want = norm_reference.forward(logits.double(), targets, features.double(), case["bias"])
    torch.testing.assert_close(got.double(), want, rtol=RTOL, atol=0)
