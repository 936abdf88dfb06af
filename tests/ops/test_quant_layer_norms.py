"""The operator behind the norms of quantized layers: its registration, its sums over samples, and what compiled graphs see of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import fastqat as fq
from fastqat.ops.fake_quant.reference import SEMANTICS
from fastqat.ops.quant_layer.input_sums import input_side_per_sample, over_samples
from fastqat.ops.quant_layer.norms import SampleNorms, quant_layer_norms_backward
from fastqat.ops.quant_layer.op import Needs, Operand
from fastqat.testing import assert_same_bits, places

EVERYTHING = Needs(*[True] * 7)
SCORING = EVERYTHING._replace(x=False)


def arguments(w_axis: int, group: int, x_axis: int, dtype: torch.dtype, permuted: bool, needs: Needs, counted: Needs) -> tuple:
    """A grouped convolution with zero points on both sides; scales along `w_axis` and `x_axis`, −1 for one."""
    draw = torch.Generator().manual_seed(0)
    layout = torch.channels_last if permuted else torch.contiguous_format
    x = torch.randn(3, 4, 5, 6, generator=draw).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(6, 2, 3, 3, generator=draw).contiguous(memory_format=layout)
    grad_y = torch.randn(3, 6, 3, 4, generator=draw).to(dtype).contiguous(memory_format=layout)
    x_scale = torch.full((1 if x_axis < 0 else 4,), 0.2)
    w_scale = torch.full((1,) if w_axis < 0 else (6, 2 // group, 3, 3) if group else (6,), 0.3)
    scales = (x_scale, torch.full_like(x_scale, 2.0), w_scale, torch.full_like(w_scale, -1.0))
    codes = ([-2, 7, x_axis, 0, 0], [-4, 3, w_axis, group, 1])
    return grad_y, x, weight, *scales, *codes, [2, 1, 1, 0, 0, 1, 1], [0.5, 0.25], [False, True], list(needs), list(counted)


FAST = ("test_schema", "test_faketensor", "test_autograd_registration")  # the others trace the operator, which takes seconds


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize(("w_axis", "group", "x_axis"), [(-1, 0, -1), (0, 0, 1), (1, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(w_axis: int, group: int, x_axis: int, dtype: torch.dtype, permuted: bool) -> None:
    for needs, counted in ((EVERYTHING, EVERYTHING), (Needs(), SCORING), (Needs(x=True), Needs(bias=True)), (SCORING, Needs(x=True))):
        args = arguments(w_axis, group, x_axis, dtype, permuted, needs, counted)
        torch.library.opcheck(quant_layer_norms_backward, args, test_utils=FAST)


@pytest.mark.parametrize("permuted", [False, True])
def test_opcheck_traced(permuted: bool) -> None:
    torch.library.opcheck(quant_layer_norms_backward, arguments(0, 0, 1, torch.float32, permuted, EVERYTHING, EVERYTHING))


def test_opcheck_of_a_linear_layer_without_quantizers() -> None:
    args = (torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(5, 4), None, None, None, None, [], [], [], [1.0, 1.0], [False, False])
    for counted in (Needs(weight=True, bias=True), Needs(bias=True), Needs()):
        torch.library.opcheck(quant_layer_norms_backward, (*args, list(Needs()), list(counted)), test_utils=FAST)


LAYOUTS = ["contiguous", "channels-last", "transposed", "sliced", "batch inside"]


def laid_out(layout: str) -> Tensor:
    """``[3, 4, 5, 6]``."""
    if layout == "contiguous":
        return torch.randn(3, 4, 5, 6)
    if layout == "channels-last":
        return torch.randn(3, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return torch.randn(3, 4, 6, 5).transpose(2, 3)
    return torch.randn(3, 4, 5, 12)[..., ::2] if layout == "sliced" else torch.randn(5, 6, 4, 3).permute(3, 2, 0, 1)


@pytest.mark.parametrize("semantics", range(len(SEMANTICS)))
@pytest.mark.parametrize("axis", [None, 1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("backend", "device"), places("fake_quant"))
def test_sums_per_sample_are_those_of_each_sample_alone(backend: str, device: str, layout: str, axis: int | None, semantics: int) -> None:
    """grad_x bit for bit that of the batch; the sums those of a backward pass per sample."""
    torch.manual_seed(0)
    x, grad = laid_out(layout).to(device), torch.randn(3, 4, 5, 6).to(device)
    scale = torch.rand(1 if axis is None else x.shape[axis], device=device) * 0.3 + 0.1
    zero_point = torch.arange(len(scale), device=device).float() % 3
    quant = Operand(scale, zero_point, [-3, 4, -1 if axis is None else axis, 0, semantics])
    with fq.use_backend(backend):
        found = input_side_per_sample(grad.clone(), x, quant, 0.5, False, True, True)
        want_x, *_ = quant.backward(grad.clone(), x, 0.5, False, (True, True))
        alone = [quant.backward(grad[n : n + 1].clone(), x[n : n + 1].contiguous(), 0.5, False, (True, True)) for n in range(3)]
        batch = quant.backward(grad.clone(), x, 0.5, False, (True, True))
    assert_same_bits(found.grad_x, want_x)
    for i, (got, sums) in enumerate(
        ((found.scale, over_samples(found.scale, quant)), (found.zero_point, over_samples(found.zero_point, quant))), start=1
    ):
        torch.testing.assert_close(got, torch.stack([each[i] for each in alone]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sums, batch[i], rtol=1e-5, atol=1e-5)


def test_a_compiled_layer_knows_nothing_of_norms() -> None:
    """One graph, and one call of it, before and after a pass with norms."""
    layer = fq.nn.QuantLinear(6, 4, weight=fq.QuantSpec(4))
    x = torch.randn(3, 6)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    compiled(x).sum().backward()
    layer.sample_norms = SampleNorms(frozenset(["weight"]), torch.empty(0, requires_grad=True), lambda sq_norm, grads: None)
    layer(x).sum().backward()
    del layer.sample_norms
    compiled(x).sum().backward()
    assert counter.frame_count == 1
    assert not any("norms" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)
