"""Every operator inside what torch offers: opcheck, compile, autocast, torch.func, second derivatives, fake tensors, pickling, export."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.utils import _pytree as pytree

import fastqat as fq
from fastqat.ops.fake_quant import op as fake_quant_op
from fastqat.ops.fake_quant_all import op as fake_quant_all_op
from fastqat.ops.logit_scores import op as logit_scores_op
from fastqat.ops.quant_layer import op as quant_layer_op
from fastqat.ops.quant_layer.api import QuantArgs, quant_conv, quant_linear
from fastqat.testing import assert_same_bits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Op(NamedTuple):
    """A public op as a function of one input ``[N, ...]`` and one scale; the rest is fixed."""

    call: Callable[[Tensor, Tensor], Any]
    shape: tuple[int, ...]
    scale: tuple[int, ...] = ()
    differentiable: bool = True

    def inputs(self, samples: int = 4, requires_grad: bool = False) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(samples)
        x = torch.randn(samples, *self.shape, generator=generator).to(DEVICE)
        scale = (torch.rand(self.scale, generator=generator) * 0.2 + 0.05).to(DEVICE)
        return x.requires_grad_(requires_grad), scale.requires_grad_(requires_grad)


RANGE = {"qmin": -4, "qmax": 3}
WEIGHT = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).to(DEVICE)
KERNEL = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
PLAIN = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}


def quant(scale: Tensor, axis: int | None = None) -> QuantArgs:
    return QuantArgs(scale, None, -4, 3, axis)


OPS = {
    "fake_quantize": Op(lambda x, s: fq.fake_quantize(x, s, **RANGE), (6,)),
    "fake_quantize channel": Op(lambda x, s: fq.fake_quantize(x, s, torch.ones_like(s), **RANGE, axis=-2), (3, 5), (3,)),
    "fake_quantize group": Op(lambda x, s: fq.fake_quantize(x, s.expand(len(x), 3), **RANGE, axis=1, group_size=2), (6,), (3,)),
    "quantize_codes": Op(lambda x, s: fq.quantize_codes(x, s, **RANGE), (6,), differentiable=False),
    "quant_linear": Op(lambda x, s: quant_linear(x, WEIGHT, x_quant=quant(s[0]), w_quant=quant(s, 0)), (6,), (5,)),
    "quant_conv": Op(lambda x, s: quant_conv(x, KERNEL, **PLAIN, x_quant=quant(s[0]), w_quant=quant(s, 0)), (3, 7, 7), (4,)),
    "fake_quantize_all": Op(lambda x, s: fq.fake_quantize_all([x, 2 * x, WEIGHT], [s, 2 * s, 3 * s], **RANGE), (6,)),
    "logit_scores": Op(lambda x, s: [t for t in fq.logit_scores(x, teacher_logits=x * s) if t is not None], (6,), differentiable=False),
}
DIFFERENTIABLE = [name for name, op in OPS.items() if op.differentiable]


def total(found: Any) -> Tensor:
    """A scalar with a gradient that differs from element to element."""
    return sum(t.square().sum() for t in pytree.tree_leaves(found))  # type: ignore[return-value]


def assert_same(got: Any, want: Any) -> None:
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OPS)
def test_compiles_whole_and_keeps_its_graph_for_a_new_batch_size(name: str) -> None:
    torch._dynamo.reset()
    op = OPS[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op.call, fullgraph=True, backend=counter)
    for samples in (4, 6, 9):
        x, scale = op.inputs(samples, op.differentiable)
        torch._dynamo.mark_dynamic(x, 0)
        got, want = compiled(x, scale), op.call(x, scale)
        assert_same(got, want)
        if op.differentiable:
            assert_same(torch.autograd.grad(total(got), (x, scale)), torch.autograd.grad(total(want), (x, scale)))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", OPS)
def test_autocast_changes_nothing_the_ops_do(name: str) -> None:
    """The ops take the dtype they are given, scales in fp32; the modules cast, as torch's do."""
    op = OPS[name]
    x, scale = op.inputs(requires_grad=op.differentiable)
    want = op.call(x, scale)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = op.call(x, scale)
    assert_same(got, want)
    if op.differentiable:
        with torch.autocast(DEVICE, torch.bfloat16):
            gradients = torch.autograd.grad(total(got), (x, scale))
        assert_same(gradients, torch.autograd.grad(total(want), (x, scale)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("in_dims", [(0, None), (1, 0)])
@pytest.mark.parametrize("name", OPS)
def test_vmap_equals_a_loop(name: str, in_dims: tuple[int, int | None]) -> None:
    op = OPS[name]
    samples = [op.inputs(n) for n in (4, 4, 4)]
    samples = [(x * (i + 1), s * (i + 1)) for i, (x, s) in enumerate(samples)]
    xs = torch.stack([x for x, _ in samples], in_dims[0])
    scales = samples[0][1] if in_dims[1] is None else torch.stack([s for _, s in samples], in_dims[1])
    want = [op.call(x, samples[0][1] if in_dims[1] is None else s) for x, s in samples]
    assert_same(vmap(op.call, in_dims)(xs, scales), pytree.tree_map(lambda *leaves: torch.stack(leaves), *want))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_torch_func_differentiates_as_backward_does(name: str) -> None:
    op = OPS[name]
    leaves = op.inputs(requires_grad=True)
    want = torch.autograd.grad(total(op.call(*leaves)), leaves)
    plain = op.inputs()
    loss = lambda x, s: total(op.call(x, s))  # noqa: E731
    assert_same(grad(loss, (0, 1))(*plain), want)
    assert_same(jacrev(loss, (0, 1))(*plain), want)
    several = [op.inputs(4), op.inputs(4)]
    got = vmap(grad(loss, (0, 1)), (0, None))(torch.stack([x for x, _ in several]), plain[1])
    alone = [grad(loss, (0, 1))(x, plain[1]) for x, _ in several]
    assert_same(got, pytree.tree_map(lambda *each: torch.stack(each), *alone))


def test_vmap_carries_gradients_to_the_outside() -> None:
    x, scale = OPS["fake_quantize"].inputs(requires_grad=True)
    got = torch.autograd.grad(total(vmap(lambda x: fq.fake_quantize(x, scale, **RANGE))(x)), (x, scale))
    assert_same(got, torch.autograd.grad(total(fq.fake_quantize(x, scale, **RANGE)), (x, scale)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivatives_are_refused(name: str) -> None:
    op = OPS[name]
    x, scale = op.inputs(requires_grad=True)
    (first,) = torch.autograd.grad(pytree.tree_leaves(op.call(x, scale))[0].sum(), scale, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(first.sum(), x)
    x, scale = op.inputs()
    loss = lambda x: total(op.call(x, scale))  # noqa: E731
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad(lambda x: grad(loss)(x).sum())(x)
    with pytest.raises(RuntimeError, match="cannot be differentiated again|forward mode AD"):
        hessian(loss)(x)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_is_refused(name: str) -> None:
    op = OPS[name]
    x, scale = op.inputs()
    with pytest.raises(RuntimeError, match="forward mode AD"):
        jvp(lambda x: op.call(x, scale), (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        op.call(forward_ad.make_dual(x, x), scale)


def test_compiling_a_transform_says_what_happens() -> None:
    x, scale = OPS["fake_quantize"].inputs()
    differentiate = lambda x: grad(lambda x: total(fq.fake_quantize(x, scale, **RANGE)))(x)  # noqa: E731
    with pytest.raises(torch._dynamo.exc.Unsupported, match="run in eager mode inside the transforms"):
        torch.compile(differentiate, fullgraph=True, backend="aot_eager")(x)
    torch._dynamo.reset()
    assert_same(torch.compile(differentiate, backend="aot_eager")(x), differentiate(x))


@pytest.mark.parametrize("name", OPS)
def test_fake_tensors_have_the_form_of_real_ones(name: str) -> None:
    op = OPS[name]
    real = op.inputs()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = op.call(*(mode.from_tensor(t) for t in real))
    for a, b in zip(pytree.tree_leaves(fake), pytree.tree_leaves(op.call(*real)), strict=True):
        assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device)


X, GRAD = (torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(seed)).to(DEVICE) for seed in (0, 1))
LAYOUTS = {"contiguous": lambda t: t, "permuted": lambda t: t.permute(2, 1, 0).contiguous().permute(2, 1, 0), "empty": lambda t: t[:0]}
GRIDS = {"tensor": ((1,), None, None), "channel": ((6,), 1, None), "group": ((4, 3, 3), 1, 2)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("granularity", GRIDS)
def test_opcheck_of_fake_quant(granularity: str, layout: str) -> None:
    shape, axis, group_size = GRIDS[granularity]
    x, grad_y = (LAYOUTS[layout](t) for t in (X, GRAD))
    scale = torch.full((len(x), *shape[1:]) if granularity == "group" else shape, 0.1, device=DEVICE)
    grid = (scale, torch.ones_like(scale), -4, 3, axis, group_size, "div")
    torch.library.opcheck(fake_quant_op.fake_quant, (x, *grid))
    torch.library.opcheck(fake_quant_op.quantize_codes, (x, *grid))
    torch.library.opcheck(fake_quant_op.fake_quant_backward, (grad_y, x, *grid, 0.5, True, True))
    code = fake_quant_all_op.pack((-4, 3, axis, group_size, "div"))
    one = torch.ones(1, device=DEVICE)
    many = ([x, X], [scale, one], [None, one.clone()], [*code, *fake_quant_all_op.pack((0, 7, None, None, "div"))])
    torch.library.opcheck(fake_quant_all_op.fake_quant_all, many)
    needs = [True, False, True, True]
    torch.library.opcheck(fake_quant_all_op.fake_quant_all_backward, ([grad_y, GRAD], *many, [1.0, 0.5], needs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_opcheck_of_quant_layer_and_logit_scores(granularity: str, layout: str) -> None:
    shape, axis, group_size = {"tensor": ((1,), -1, 0), "channel": ((5,), 0, 0), "group": ((5, 3), 1, 2)}[granularity]
    x = LAYOUTS[layout](X.reshape(12, 6)) if layout != "permuted" else X.reshape(12, 6).t().contiguous().t()
    code = [-4, 3, axis, group_size, 0]
    x_scale, w_scale = torch.full((1,), 0.1, device=DEVICE), torch.full(shape, 0.1, device=DEVICE)
    tensors = (x, WEIGHT, torch.zeros(5, device=DEVICE), x_scale, None, w_scale, None)
    torch.library.opcheck(quant_layer_op.quant_layer, (*tensors, [-4, 3, -1, 0, 0], code, []))
    backward = (torch.randn(len(x), 5, device=DEVICE), *tensors[:2], *tensors[3:], [-4, 3, -1, 0, 0], code, [])
    needs = [True, True, True, True, False, True, False]
    torch.library.opcheck(quant_layer_op.quant_layer_backward, (*backward, [1.0, 1.0], [False, True], needs))
    torch.library.opcheck(logit_scores_op.logit_scores, (x, torch.zeros(len(x), dtype=torch.int64, device=DEVICE), x))


def quantized_model(config: str | fq.QConfig = "w4a4:channel") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8, device=DEVICE)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).to(DEVICE)
    return fq.calibrate(fq.quantize(layers, config, skip=()), [x]), x


CONFIGS = {
    "channel": "w4a4:channel",
    "tensor": "w8a8",
    "minmax": fq.QConfig(fq.QuantSpec(8, "minmax", granularity="channel"), fq.QuantSpec(8, "minmax", symmetric=False)),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_quantized_model_survives_pickling_and_copies(config: str, tmp_path: Path) -> None:
    model, x = quantized_model(CONFIGS[config])
    model(x).square().sum().backward()
    model.eval()
    torch.save(model, tmp_path / "model.pt")
    copies = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)]
    for other in copies:
        assert_same_bits(other(x), model(x))
        assert str(other) == str(model)
        other.train()(x).square().sum().backward()


@pytest.mark.parametrize("config", CONFIGS)
def test_an_exported_model_is_saved_and_loaded(config: str) -> None:
    model, x = quantized_model(CONFIGS[config])
    model.eval()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (x, x.repeat(3, 1, 1, 1)):
        assert_same_bits(loaded(batch), model(batch))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("training", [True, False])
def test_per_sample_gradients_of_a_model_by_torch_func(training: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, device=DEVICE)
    layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).to(DEVICE)
    model = fq.calibrate(fq.quantize(layers, "w4a4:channel", skip=()), [x])
    model.train(training)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    got = vmap(grad(lambda p, x: total(functional_call(model, p, (x.unsqueeze(0),)))), (None, 0))(parameters, x)
    for i in range(3):
        want = torch.autograd.grad(total(model(x[i : i + 1])), list(model.parameters()))
        assert_same([got[name][i] for name, _ in model.named_parameters()], want)
