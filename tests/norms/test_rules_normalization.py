"""Rules of normalisation layers against single-sample autograd in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastqat as fq
from fastqat.norms import find_rule
from fastqat.testing import places

from .rule_checks import check_half, check_rule, random_parameters, rule_of

PLACES = [place for place in places("affine_grad_norm") if place == ("reference", "cpu") or place[0] == "cpu"]
SIZES = st.integers(1, 9)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def with_statistics(layer: nn.Module, x: Tensor) -> nn.Module:
    """In eval mode, with running statistics that fit x."""
    dims = [d for d in range(x.dim()) if d != 1]
    layer.running_mean.copy_(x.mean(dims) + 0.1)
    layer.running_var.copy_(x.var(dims, unbiased=False) + 0.1)
    return layer.eval()


def batch_norm(x: Tensor) -> nn.Module:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.dim()]
    return with_statistics(random_parameters(kind(x.shape[1])), x)


def group_norm(x: Tensor, groups: int | None = None) -> nn.Module:
    return random_parameters(nn.GroupNorm(groups or math.gcd(x.shape[1], 4), x.shape[1]))


def instance_norm(x: Tensor) -> nn.Module:
    kind = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[x.dim()]
    return random_parameters(kind(x.shape[1], affine=True))


def running_instance_norm(x: Tensor) -> nn.Module:
    kind = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[x.dim()]
    return with_statistics(random_parameters(kind(x.shape[1], affine=True, track_running_stats=True)), x)


def layer_norm(x: Tensor, dims: int = 1) -> nn.Module:
    return random_parameters(nn.LayerNorm(x.shape[-dims:]))


def rms_norm(x: Tensor, dims: int = 1) -> nn.Module:
    return random_parameters(nn.RMSNorm(x.shape[-dims:], eps=1e-5))  # the default depends on the dtype, and the oracle is wider


LAYERS = {f.__name__: f for f in (batch_norm, group_norm, instance_norm, running_instance_norm, layer_norm, rms_norm)}


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@settings(max_examples=10, deadline=None)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.lists(SIZES, min_size=1, max_size=3)), mean=st.sampled_from([0.0, -30.0]))
def test_shapes(make, backend: str, device: str, shape, mean: float) -> None:
    torch.manual_seed(0)
    samples, channels, positions = shape
    if make in (group_norm, instance_norm) and math.prod(positions) == 1:
        positions = [2]  # torch refuses to normalise one value
    x = torch.randn(samples, channels, *positions) + mean
    layer = make(x)
    with fq.use_backend(backend):
        check_rule(layer, x)


@pytest.mark.parametrize("make", [layer_norm, rms_norm])
@pytest.mark.parametrize(("shape", "dims"), [((3, 5), 1), ((2, 4, 3, 5), 2), ((2, 4, 3, 5), 3), ((2, 300, 7), 1)])
def test_normalized_shapes(make, shape: tuple[int, ...], dims: int) -> None:
    x = torch.randn(shape)
    check_rule(make(x, dims), x)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_no_samples_and_one(make) -> None:
    x = torch.randn(2, 6, 5, 5)
    layer = make(x)
    check_rule(layer, x[:1])
    for names in ({"weight"}, set(dict(layer.named_parameters()))):
        assert rule_of(layer).sq_norm(layer, x[:0], x[:0], frozenset(names)).shape == (0,)
        assert all(grad.shape[0] == 0 for grad in rule_of(layer).grads(layer, x[:0], x[:0], frozenset(names)).values())


def test_batch_norm_of_features() -> None:
    x = torch.randn(4, 7)
    check_rule(batch_norm(x), x)
    sync = with_statistics(random_parameters(nn.SyncBatchNorm(7)), x)
    check_rule(sync, x)


def test_layouts() -> None:
    x = torch.randn(3, 8, 5, 6)
    for make in LAYERS.values():
        layer = make(x)
        for layout in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), x[:, :, ::2], x[:1].expand(3, 8, 5, 6)):
            if layout.shape[-1] == x.shape[-1] or make not in (layer_norm, rms_norm):
                check_rule(layer, layout)


def test_layers_without_bias() -> None:
    x = torch.randn(3, 4, 6)
    check_rule(random_parameters(nn.LayerNorm(6, bias=False)), x)


@pytest.mark.parametrize("eps", [None, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_of_tiny_values_takes_torchs_eps(dtype: torch.dtype, eps: float | None) -> None:
    layer, x = nn.RMSNorm(6, eps=eps).to(dtype), (torch.randn(3, 6) * 3e-4).to(dtype)
    y = layer(x)
    got = rule_of(layer).grads(layer, x, torch.ones_like(y), frozenset({"weight"}))["weight"]
    torch.testing.assert_close(got, y.float(), rtol=2.0**-7 if dtype == torch.bfloat16 else 1e-5, atol=0)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make, dtype: torch.dtype) -> None:
    x = torch.randn(3, 8, 5, 7) + 1
    check_half(make(x), x, dtype)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3), nn.SyncBatchNorm(3)])
def test_batch_statistics_are_refused(layer: nn.Module) -> None:
    rule = find_rule(layer)
    assert rule is not None
    assert "eval()" in str(rule.refuses(layer))
    assert rule.refuses(layer.eval()) is None
    assert "track_running_stats" in str(rule.refuses(type(layer)(3, track_running_stats=False).eval()))


def test_networks_with_batch_norm_in_train_mode_name_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(fq.InputError, match=r"1 \(BatchNorm2d\).*mix the samples"), fq.per_sample_grad_norms(model):
        pass
