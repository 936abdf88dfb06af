"""The two semantics against those who defined them: torch's own operators ("reciprocal") and ONNX Runtime's QuantizeLinear ("div")."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastqat as fq
from fastqat import testing

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PLACES = testing.places("fake_quant")
RANGES = {f"u{bits}": (0, 2**bits - 1) for bits in (2, 3, 4, 5, 6, 7, 8, 16)} | {
    f"s{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (2, 3, 4, 5, 6, 7, 8, 16)
}
TYPES = {"INT8": "s8", "UINT8": "u8", "INT16": "s16", "UINT16": "u16", "INT4": "s4", "UINT4": "u4"}
SCALES = [0.0371, 0.25, 1.0, 3e-5, 1e4]


def in_reach(x: Tensor, scale: Tensor | float) -> Tensor:
    """x, zero where its quotient does not fit in 31 bits: there torch, and ONNX Runtime per channel and group, overflow."""
    v = x.double() / scale
    return torch.where(v.isfinite() & (v.abs() < 2**31), x, 0)


def places(dtype: torch.dtype) -> list[tuple[str, str]]:
    """Triton's interpreter has no bfloat16."""
    return [place for place in PLACES if place != ("triton", "cpu") or dtype != torch.bfloat16]


@pytest.mark.parametrize("limits", [name for name in RANGES if "16" not in name])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reciprocal_equals_torch_per_tensor(dtype: torch.dtype, limits: str) -> None:
    qmin, qmax = RANGES[limits]
    for (backend, device), scale, z in ((p, s, z) for p in places(dtype) for s in SCALES for z in (0, qmin, qmax, qmax // 2)):
        x = in_reach(testing.ties(scale, qmin, qmax).to(dtype), scale).to(device).requires_grad_()
        s = torch.tensor(scale, device=device)
        with fq.use_backend(backend):
            ours = fq.fake_quantize(x, s, torch.tensor(z, device=device), qmin=qmin, qmax=qmax, semantics="reciprocal")
            (grad_x,) = torch.autograd.grad(ours, x, torch.ones_like(x))
        theirs = torch.fake_quantize_per_tensor_affine(x, s, torch.tensor(z, dtype=torch.int32, device=device), qmin, qmax)
        assert torch.equal(ours, theirs), f"{backend} on {device}, scale {scale}, zero point {z}"
        assert torch.equal(grad_x, torch.autograd.grad(theirs, x, torch.ones_like(x))[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("limits", ["s2", "u4", "s8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reciprocal_equals_torch_per_channel_without_zero_point(dtype: torch.dtype, limits: str, axis: int) -> None:
    qmin, qmax = RANGES[limits]
    rows = torch.stack([in_reach(testing.ties(scale, qmin, qmax).to(dtype), scale) for scale in SCALES])
    x = torch.stack([rows, -rows]).movedim(1, axis)
    zero = torch.zeros(len(SCALES), dtype=torch.int32)
    for backend, device in places(dtype):
        s, x = torch.tensor(SCALES, device=device), x.detach().to(device).requires_grad_()
        with fq.use_backend(backend):
            ours = fq.fake_quantize(x, s, qmin=qmin, qmax=qmax, axis=axis, semantics="reciprocal")
            (grad_x,) = torch.autograd.grad(ours, x, torch.ones_like(x))
        theirs = torch.fake_quantize_per_channel_affine(x, s, zero.to(device), axis, qmin, qmax)
        assert torch.equal(ours, theirs), f"{backend} on {device}"
        assert torch.equal(grad_x, torch.autograd.grad(theirs, x, torch.ones_like(x))[0])


@pytest.mark.parametrize("z", [0, 3])  # of a negative zero point torch's backward makes another one than its forward
@pytest.mark.parametrize("limits", ["s4", "u8"])
def test_reciprocal_has_the_gradients_of_torch_learnable(limits: str, z: int) -> None:
    qmin, qmax = RANGES[limits]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, generator=generator) * qmax * 0.03
    grad_y = torch.randn(2000, generator=generator)
    gradients = []
    for fake_quantize in (
        lambda x, s, z: fq.fake_quantize(x, s, z, qmin=qmin, qmax=qmax, semantics="reciprocal", grad_factor=0.5),
        lambda x, s, z: torch._fake_quantize_learnable_per_tensor_affine(x, s, z, qmin, qmax, 0.5),
    ):
        leaves = [x.clone().requires_grad_(), torch.tensor([0.0371], requires_grad=True), torch.tensor([float(z)], requires_grad=True)]
        gradients.append(torch.autograd.grad(fake_quantize(*leaves), leaves, grad_y))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def onnx_codes(x: Tensor, scale: Tensor, zero_point: Tensor, type_name: str, **attributes: int) -> Tensor:
    """What ONNX Runtime's QuantizeLinear makes of x, as int32; skips where a type is not there."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnx onnxruntime")
    from onnx import TensorProto, helper

    code_type = getattr(TensorProto, type_name)
    s = helper.make_tensor("s", TensorProto.FLOAT, list(scale.shape), scale.flatten().tolist())
    z = helper.make_tensor("z", code_type, list(zero_point.shape), zero_point.flatten().tolist())
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("Cast", ["q"], ["codes"], to=TensorProto.INT32),  # four bits have no numpy type
    ]
    graph = helper.make_graph(
        nodes,
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("codes", TensorProto.INT32, list(x.shape))],
        [s, z],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except runtime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        pytest.skip(f"this onnxruntime has no {type_name} here: {error}")
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def check_codes(x: Tensor, scale: Tensor, zero_point: Tensor, type_name: str, want: Tensor, **options: Any) -> None:
    qmin, qmax = RANGES[TYPES[type_name]]
    for backend, device in PLACES:
        tensors = (t.to(device) for t in (x, scale, zero_point))
        with fq.use_backend(backend):
            codes = fq.quantize_codes(*tensors, qmin=qmin, qmax=qmax, **options).cpu()
        wrong = (codes != want) & ~x.isnan()
        assert not wrong.any(), f"{backend}: x = {x[wrong][0]}, {codes[wrong][0]} against {want[wrong][0]}"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("type_name", TYPES)
def test_div_equals_onnx_runtime_per_tensor(type_name: str, scale: float) -> None:
    qmin, qmax = RANGES[TYPES[type_name]]
    x, s = testing.ties(scale, max(qmin, -400), min(qmax, 400)), torch.tensor(scale)
    for z in (0, qmin, 3, qmax):
        zero_point = torch.tensor(z, dtype=torch.int32)
        check_codes(x, s, zero_point, type_name, onnx_codes(x, s, zero_point, type_name))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("type_name", TYPES)
def test_div_equals_onnx_runtime_per_channel(type_name: str, axis: int) -> None:
    qmin, qmax = RANGES[TYPES[type_name]]
    rows = torch.stack([in_reach(testing.ties(scale, max(qmin, -100), min(qmax, 100)), scale) for scale in SCALES])
    x = torch.stack([rows, -rows]).movedim(1, axis).contiguous()
    s, z = torch.tensor(SCALES), torch.tensor([0, qmin, qmax, 1, 2], dtype=torch.int32)
    check_codes(x, s, z, type_name, onnx_codes(x, s, z, type_name, axis=axis), axis=axis)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("type_name", TYPES)
def test_div_equals_onnx_runtime_per_group(type_name: str, axis: int) -> None:
    qmin, qmax = RANGES[TYPES[type_name]]
    generator = torch.Generator().manual_seed(0)
    shape, groups = ((64, 6), (4, 6)) if axis == 0 else ((6, 64), (6, 4))
    s = torch.rand(groups, generator=generator) + 0.01
    z = torch.randint(max(qmin, -100), min(qmax, 100), groups, generator=generator, dtype=torch.int32)
    each, zeros = (testing.spread(t, shape, axis, 16) for t in (s, z.float()))
    x = in_reach(testing.hard_values(each, zeros, max(qmin, -100), min(qmax, 100), generator), each)
    want = onnx_codes(x, s, z, type_name, axis=axis, block_size=16)
    check_codes(x, s, z, type_name, want, axis=axis, group_size=16)


@pytest.mark.parametrize("type_name", ["INT8", "UINT8"])
def test_nan_gives_the_lowest_code_as_onnx_runtime(type_name: str) -> None:
    x, s, z = torch.full((40,), torch.nan), torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    want = onnx_codes(x, s, z, type_name)
    qmin, qmax = RANGES[TYPES[type_name]]
    for backend, device in PLACES:
        with fq.use_backend(backend):
            assert torch.equal(fq.quantize_codes(x.to(device), s.to(device), qmin=qmin, qmax=qmax).cpu().int(), want)
