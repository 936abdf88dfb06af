"""grand_last: every backend against single-sample autograd in fp64, and the same bits for any number of threads or instruction set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastqat as fq
from fastqat import InputError
from fastqat.ops.grand_last import op
from fastqat.ops.grand_last.api import grand_last
from fastqat.testing import assert_same_bits, pairwise, places

from .levels import at_every_level

PLACES = places("grand_last")
everywhere = pytest.mark.parametrize(("backend", "device"), PLACES)
native = pytest.mark.skipif(("cpu", "cpu") not in PLACES, reason="fastqat._C is not built")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RTOL = 1e-5  # the contract
SHAPES = [(1, 1, 1), (5, 10, 512), (3, 1000, 300), (17, 16, 64), (9, 33, 0), (4, 3000, 2049)]  # samples, classes, width
CASES = pairwise(shape=SHAPES, logits=DTYPES, features=DTYPES, bias=[True, False], values=["usual", "learned", "far"])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def inputs(shape: tuple[int, int, int], values: str = "usual") -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and features; the targets of `learned` have p near 1, those of `far` near 0."""
    samples, classes, width = shape
    logits, targets = 3 * torch.randn(samples, classes), torch.randint(classes, (samples,))
    if values != "usual":
        logits[torch.arange(samples), targets] += 12.0 if values == "learned" else -30.0
    return logits, targets, torch.randn(samples, width)


def by_autograd(logits: Tensor, targets: Tensor, features: Tensor, bias: bool) -> Tensor:
    """The norm of each sample's gradient in fp64: a layer whose output is `logits` for `features`, by its product with zero weights."""
    norms = []
    for z, y, h in zip(logits.double(), targets, features.double(), strict=True):
        weight, offset = torch.zeros(len(z), len(h)).double().requires_grad_(), torch.zeros(len(z)).double().requires_grad_()
        loss = F.cross_entropy(z + weight @ h + offset, y)
        grads = torch.autograd.grad(loss, [weight, offset])
        norms.append(torch.cat([grad.flatten() for grad in (grads if bias else grads[:1])]).norm())
    return torch.stack(norms)


def found(device: str, *tensors: Tensor, bias: bool = True) -> Tensor:
    return grand_last(*(t.to(device) for t in tensors), bias=bias).cpu()


@pytest.mark.parametrize("case", CASES, ids=str)
@everywhere
def test_equals_autograd(backend: str, device: str, case: dict) -> None:
    logits, targets, features = inputs(case["shape"], case["values"])
    logits, features = logits.to(case["logits"]), features.to(case["features"])
    with fq.use_backend(backend):
        got = found(device, logits, targets, features, bias=case["bias"])
    assert got.dtype == torch.float32
    # A learned sample's 1 − p is exact here and comes from a cancellation in the oracle: 1e-16 of a norm of 1.
    torch.testing.assert_close(got.double(), by_autograd(logits, targets, features, case["bias"]), rtol=RTOL, atol=1e-13)


def test_float64_takes_the_reference() -> None:
    logits, targets, features = inputs((4, 7, 9))
    for wide in ((logits.double(), features), (logits, features.double())):
        got = grand_last(wide[0], targets, wide[1])
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, by_autograd(logits, targets, features, True), rtol=1e-12, atol=0)
    if ("cpu", "cpu") in PLACES:
        with fq.use_backend("cpu"), pytest.raises(RuntimeError, match="float64 runs on the reference backend only"):
            grand_last(logits.double(), targets, features)


@everywhere
def test_any_stride(backend: str, device: str) -> None:
    logits, targets, features = (t.to(device) for t in inputs((9, 33, 70)))
    wide, wide_features = torch.full((9, 50), torch.nan, device=device), torch.full((9, 90), torch.nan, device=device)
    wide[:, 7:40], wide_features[:, 5:75] = logits, features
    with fq.use_backend(backend):
        want = grand_last(logits, targets, features)
        assert_same_bits(grand_last(wide[:, 7:40], targets.repeat_interleave(2)[::2], wide_features[:, 5:75]), want)
        assert_same_bits(grand_last(logits.t().contiguous().t(), targets, features.t().contiguous().t()), want)
        same = grand_last(logits[:1].expand(9, 33), targets[:1].expand(9), features[:1].expand(9, 70))
        assert_same_bits(same, want[:1].expand(9))


@everywhere
def test_no_rows_and_no_features(backend: str, device: str) -> None:
    logits, targets, _ = inputs((6, 5, 1))
    evs = fq.logit_scores(logits, targets).evs
    with fq.use_backend(backend):
        assert found(device, torch.empty(0, 5), torch.empty(0, dtype=torch.int64), torch.empty(0, 3)).shape == (0,)
        torch.testing.assert_close(found(device, logits, targets, torch.empty(6, 0)), evs)
        assert not found(device, logits, targets, torch.empty(6, 0), bias=False).any()


@everywhere
def test_rows_without_a_result_are_nan_and_no_others(backend: str, device: str) -> None:
    logits, targets, features = inputs((8, 20, 10))
    with fq.use_backend(backend):
        want = found(device, logits, targets, features)
        logits[1, 0], logits[2, 3], logits[3] = torch.nan, torch.inf, -torch.inf
        logits[4, targets[4]] = torch.nan
        features[5, 2] = torch.nan
        targets[6], targets[7] = 20, -1
        got = found(device, logits, targets, features)
    assert got[1:].isnan().all()
    assert_same_bits(got[:1], want[:1])


@everywhere
def test_masked_classes_do_not_count(backend: str, device: str) -> None:
    logits, targets, features = inputs((8, 30, 10))
    with fq.use_backend(backend):
        want = found(device, logits, targets, features)
        got = found(device, torch.cat([logits, torch.full((8, 25), -torch.inf)], 1), targets, features)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


@native
@pytest.mark.parametrize("shape", [(1, 5, 3), (100, 3, 70), (7, 1000, 513)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_threads_and_instruction_sets(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    logits, targets, features = inputs(shape)
    results = at_every_level(lambda: grand_last(logits.to(dtype), targets, features.to(dtype)), threads=(1, 3))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@everywhere
def test_opcheck(backend: str, device: str) -> None:
    logits, targets, features = (t.to(device) for t in inputs((6, 5, 4)))
    with fq.use_backend(backend):
        for bias in (True, False):
            torch.library.opcheck(op.grand_last, (logits.t().contiguous().t(), targets, features.bfloat16(), bias))


def test_compiles_whole_and_maps() -> None:
    logits, targets, features = inputs((12, 5, 4))
    want = grand_last(logits, targets, features)
    assert_same_bits(torch.compile(grand_last, fullgraph=True, backend="eager")(logits, targets, features), want)
    mapped = torch.func.vmap(grand_last, in_dims=(0, 0, 1))(
        logits.view(3, 4, 5), targets.view(3, 4), features.view(3, 4, 4).transpose(0, 1)
    )
    assert_same_bits(mapped.flatten(), want)


def test_the_result_is_detached() -> None:
    logits, targets, features = inputs((4, 3, 2))
    assert not grand_last(logits.requires_grad_(), targets, features.requires_grad_()).requires_grad


GOOD = inputs((4, 3, 2))
BAD_INPUT = {
    "a list": (([[1.0]], *GOOD[1:]), "logits is list; accepted: a tensor"),
    "a list of targets": ((GOOD[0], [0, 1, 2, 0], GOOD[2]), "targets is list; accepted: a tensor, such as torch.as_tensor"),
    "no features": ((*GOOD[:2], None), "features is NoneType; accepted: a tensor"),
    "one dimension": ((torch.zeros(3), GOOD[1], GOOD[2]), r"logits has shape \[3\]; accepted: \[samples, classes\]"),
    "float targets": ((GOOD[0], torch.zeros(4), GOOD[2]), "targets is torch.float32; accepted: int64"),
    "too few features": ((*GOOD[:2], torch.zeros(3, 2)), r"features has shape \[3, 2\]; accepted: \[4, width\]"),
    "features of pictures": ((*GOOD[:2], torch.zeros(4, 2, 2)), r"features has shape \[4, 2, 2\]"),
    "integer features": ((*GOOD[:2], torch.zeros(4, 2).long()), "features is torch.int64; accepted: float32"),
    "other device": ((*GOOD[:2], torch.zeros(4, 2, device="meta")), "features is on meta and logits on cpu; move both"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case: str) -> None:
    arguments, message = BAD_INPUT[case]
    with pytest.raises(InputError, match=message):
        grand_last(*arguments)


COMPILE = """
import itertools, torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from fastqat.ops.grand_last.kernels import grand_last_kernel
types = {"logits_ptr": "*fp32", "targets_ptr": "*i64", "features_ptr": "*bf16", "norm_ptr": "*fp32", "samples": "i32", "class_units": "i32",
         "width_units": "i32", "logits_stride": "i32", "features_stride": "i32"}
names = [p.name for p in grand_last_kernel.params]
for arch, (rows, classes, width, bias) in itertools.product((80, 90, 100), [(4, 16, 512, True), (1, 1024, 2048, False)]):
    constants = {"UNIT": 8, "BIAS": bias, "ROWS": rows, "CLASSES": classes, "WIDTH": width}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in types if n.endswith("_ptr")}
    signature = types | dict.fromkeys(constants, "constexpr")
    ptx = triton.compile(ASTSource(grand_last_kernel, signature=signature, constexprs=constants, attrs=aligned),
                         target=GPUTarget("cuda", arch, 32)).asm["ptx"]
    assert "ld.global.v4.b32" in ptx, "features are not read 128 bits at a time"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="triton compiles on Linux")
def test_the_kernel_compiles_for_every_architecture() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # the interpreter replaces the compiler
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
