"""fake_quantize and quantize_codes as torch operators: bad input, opcheck, compile, threads, double backward, fake tensors."""

from __future__ import annotations

import itertools
import pickle
import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import fastqat as fq
from fastqat._backend import backends_for
from fastqat.ops.fake_quant import op
from fastqat.testing import places

BACKENDS = backends_for("fake_quant")
on_each_device = pytest.mark.parametrize("device", sorted({device for _, device in places("fake_quant")}))
FAST = [name for name in BACKENDS if name != "reference"]
native = pytest.mark.skipif("cpu" not in BACKENDS, reason="fastqat._C is not built")


@pytest.mark.parametrize(("kwargs", "error", "message"), [
    ({"scale": 0.5}, TypeError, "accepted: a tensor"),
    ({"qmin": -8.0}, TypeError, "accepted: integers"),
    ({"zero_point": torch.ones(1, dtype=torch.complex64)}, TypeError, "integer or floating"),
    ({"qmin": 3, "qmax": 1}, ValueError, r"integer range \[3, 1\]"),
    ({"qmin": -(2**20), "qmax": 1}, ValueError, "at most 16 bits"),
    ({"axis": 2}, ValueError, "axis 2 is out of range"),
    ({"axis": 1}, ValueError, r"scale has shape \[1\]; accepted: shape \[4\]"),
    ({"semantics": "round"}, ValueError, "accepted: 'div'"),
    ({"scale": torch.ones(3)}, ValueError, "accepted: one element"),
    ({"scale": torch.ones(1, dtype=torch.float16)}, TypeError, "use scale.float()"),
    ({"x": torch.ones(3, 4, dtype=torch.int32)}, TypeError, "accepted: float32"),
    ({"zero_point": torch.ones(2)}, ValueError, "zero_point has shape"),
    ({"scale": torch.ones(1, device="meta")}, ValueError, "move both to one device"),
])  # fmt: skip
def test_bad_input(kwargs: dict, error: type[Exception], message: str) -> None:
    arguments = {"x": torch.ones(3, 4), "scale": torch.ones(1), "qmin": -8, "qmax": 7, **kwargs}
    with pytest.raises(error, match=message):
        fq.fake_quantize(arguments.pop("x"), arguments.pop("scale"), arguments.pop("zero_point", None), **arguments)


@pytest.mark.parametrize(("scale", "zero_point"), [([], [1]), ([1], [])])
def test_scale_and_zero_point_may_differ_in_shape(scale: list[int], zero_point: list[int]) -> None:
    s, z = torch.full(scale, 0.1, requires_grad=True), torch.full(zero_point, 1.0, requires_grad=True)
    fq.fake_quantize(torch.tensor([0.2, 9.0]), s, z, qmin=-8, qmax=7).sum().backward()
    assert s.grad.shape == s.shape and z.grad.shape == z.shape


@native
def test_operators_check_sizes_before_they_read() -> None:
    x, s = torch.ones(8), torch.tensor([0.5])
    grid = (s, None, -8, 7, None, None, "div")
    for grad in (torch.ones(2), torch.ones(8, dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError, match="grad_y and grad_x must have the size and dtype of x|must match|size"):
            op.fake_quant_backward(grad, x, *grid, 1.0, True, False)
    with pytest.raises(RuntimeError, match="must be float32 with 8 elements"):
        op.fake_quant(x, s.expand(8), torch.ones(1), -8, 7, 0, None, "div")


def test_use_backend_reaches_other_threads() -> None:
    name = FAST[0] if FAST else "reference"
    failed: list[str] = []

    def run() -> None:
        try:
            fq.fake_quantize(torch.ones(2, dtype=torch.float64), torch.tensor(0.5), qmin=-8, qmax=7)
        except fq.BackendError as error:
            failed.append(str(error))

    with fq.use_backend(name):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert bool(failed) == (name != "reference")


def test_double_backward_is_refused() -> None:
    x = torch.randn(5, requires_grad=True)
    (grad,) = torch.autograd.grad(fq.fake_quantize(x * 2, torch.tensor(0.1), qmin=-8, qmax=7).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.sum().backward()


def test_fp64_runs_on_the_reference() -> None:
    y = fq.fake_quantize(torch.tensor([0.26], dtype=torch.float64), torch.tensor(0.5), qmin=-8, qmax=7)
    assert y.dtype == torch.float64 and y.item() == 0.5
    if "cpu" in BACKENDS:
        with fq.use_backend("cpu"), pytest.raises(RuntimeError, match="float64 runs on the reference"):
            fq.fake_quantize(torch.ones(1, dtype=torch.float64), torch.tensor(0.5), qmin=-8, qmax=7)


@pytest.mark.parametrize(
    "x", [torch.randn(4, 3), torch.randn(2, 3, 4, 5).permute(0, 2, 3, 1), torch.randn(0, 3)], ids=["plain", "permuted", "empty"]
)
@on_each_device
def test_opcheck(device: str, x: torch.Tensor) -> None:
    x = x.to(device)
    common = (torch.tensor([0.1], device=device), torch.tensor([1.0], device=device), -8, 7, None, None, "div")
    torch.library.opcheck(op.fake_quant, (x, *common))
    torch.library.opcheck(op.quantize_codes, (x, *common))
    for needs in itertools.product([False, True], repeat=2):
        torch.library.opcheck(op.fake_quant_backward, (torch.randn_like(x), x, *common, 0.5, *needs))


@on_each_device
def test_compiles_whole_and_keeps_its_graph_for_a_new_batch_size(device: str) -> None:
    scale = torch.tensor([0.1], device=device, requires_grad=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: fq.fake_quantize(x, scale, qmin=-8, qmax=7), fullgraph=True, backend=counter)
    for n in (4, 6, 9):
        x = torch.randn(n, 5, device=device)
        torch._dynamo.mark_dynamic(x, 0)
        y = compiled(x)
        (got,) = torch.autograd.grad(y.sum(), scale)
        (want,) = torch.autograd.grad(fq.fake_quantize(x, scale, qmin=-8, qmax=7).sum(), scale)
        assert torch.equal(got, want)
    assert counter.frame_count == 1


def test_results_survive_pickling_and_fake_tensors() -> None:
    y = fq.fake_quantize(torch.randn(3), torch.tensor(0.1), qmin=-8, qmax=7)
    assert torch.equal(pickle.loads(pickle.dumps(y)), y)
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        fake = fq.fake_quantize(torch.empty(2, 3, 4, 5).permute(0, 2, 3, 1), torch.empty(1), qmin=0, qmax=300)
        codes = fq.quantize_codes(torch.empty(2, 3), torch.empty(1), qmin=0, qmax=300)
    assert fake.stride() == (60, 5, 1, 20) and codes.dtype == torch.int16


@pytest.mark.parametrize("options", [{"axis": 1.0}, {"axis": "c"}, {"axis": True}, {"grad_factor": None}, {"grad_factor": torch.ones(2)}])
def test_options_of_another_type_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(options))} is .*accepted"):
        fq.fake_quantize(torch.ones(2, 3), torch.ones(1), qmin=-8, qmax=7, **options)


def test_sparse_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="accepted: a dense one"):
        fq.fake_quantize(torch.eye(3).to_sparse(), torch.ones(1), qmin=-8, qmax=7)
