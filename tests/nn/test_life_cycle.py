"""Saving, loading, copying and pickling of quantized models."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from fastqat.nn import QConfig, calibrate, param_groups, quantize
from fastqat.quantizers import QuantSpec

from ..quantizers.variants import finest_specs, weight_specs

X = torch.randn(16, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def config(label: str) -> QConfig:
    weight = weight_specs()[label]
    return QConfig(weight, QuantSpec(4, weight.quantizer, signed="auto", symmetric=weight.symmetric))


def calibrated(name: str = "lsq-channel", seed: int = 0) -> nn.Sequential:
    return calibrate(quantize(net(seed), config(name), skip=()), [X])


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(5)
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def through_disk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", finest_specs())
def test_quantized_checkpoint_restores_everything(name: str) -> None:
    model = calibrated(name)
    steps(model, torch.optim.SGD(param_groups(model, 0.05), momentum=0.9), 2)
    other = quantize(net(seed=1), config(name), skip=())
    other.load_state_dict(through_disk(model.state_dict()))
    assert same(model.state_dict(), other.state_dict())
    assert [q.signed for q in quantizers(other)] == [q.signed for q in quantizers(model)]
    assert torch.equal(model.eval()(X), other.eval()(X)), "calibrated, without a call of calibrate"


def quantizers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "calibrated")]


def test_an_uncalibrated_checkpoint_stays_uncalibrated() -> None:
    state = quantize(net(), config("lsq-channel"), skip=()).state_dict()
    model = calibrated()
    model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="layer '0'"):
        model(X)


def test_state_holds_tensors_only() -> None:
    assert all(isinstance(value, Tensor) for value in calibrated().state_dict().values())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", finest_specs())
def test_float_checkpoint_loads_strictly_and_sets_the_weight_scales(name: str, assign: bool) -> None:
    model = quantize(net(seed=1), config(name), skip=())
    result = model.load_state_dict(net(seed=0).state_dict(), strict=True, assign=assign)
    assert not result.missing_keys and not result.unexpected_keys
    fresh = quantize(net(seed=0), config(name), skip=())
    assert same(model.state_dict(), fresh.state_dict())
    with pytest.raises(RuntimeError, match="not known"):
        model(X)


def test_float_checkpoint_keeps_calibrated_activations() -> None:
    model = calibrated()
    scale = model[0].activation_quantizer.scale.detach().clone()
    model.load_state_dict(net(seed=1).state_dict())
    assert torch.equal(model[0].activation_quantizer.scale, scale)
    model(X)


def test_other_missing_and_unexpected_keys_still_fail() -> None:
    state = net().state_dict()
    del state["3.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*3\.weight"):
        calibrated().load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net().load_state_dict(calibrated().state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        quantize(net(), "w4a4", skip=()).load_state_dict(calibrated().state_dict())


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scale_in_a_checkpoint_names_the_layer(bad: float) -> None:
    model = calibrated()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["3.weight_quantizer.scale"][1] = bad
    with pytest.raises(ValueError, match="layer '3': the checkpoint's weight scale is not positive"):
        model.load_state_dict(state)


def test_bad_clipping_value_in_a_checkpoint_names_the_layer() -> None:
    state = calibrated("pact-tensor").state_dict()
    state["0.activation_quantizer.alpha"] = torch.tensor([torch.nan])
    with pytest.raises(ValueError, match="layer '0': the checkpoint's activation alpha is not positive"):
        calibrated("pact-tensor").load_state_dict(state)


def test_checkpoint_with_other_bits_or_sign() -> None:
    state = calibrated().state_dict()
    wide = QConfig(QuantSpec(8, granularity="channel"), QuantSpec(8, signed="auto"))
    with pytest.raises(ValueError, match=r"layer '0': .*4 bit signed=True, the model's is 8 bit"):
        quantize(net(), wide, skip=()).load_state_dict(state)
    unsigned = QConfig(QuantSpec(4, granularity="channel"), QuantSpec(4, signed=False))
    with pytest.raises(ValueError, match=r"layer '0': .*activation quantizer is 4 bit signed=True, the model's is 4 bit signed=False"):
        quantize(net(), unsigned, skip=()).load_state_dict(state)


@pytest.mark.parametrize("name", finest_specs())
def test_a_copy_in_mid_training_continues_identically(name: str) -> None:
    model = calibrated(name)
    optimizer = torch.optim.SGD(param_groups(model, 0.05), momentum=0.9)
    steps(model, optimizer, 2)
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.SGD(param_groups(twin, 0.05), momentum=0.9)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, 3)
    steps(twin, twin_optimizer, 3)
    assert same(model.state_dict(), twin.state_dict())


def test_resuming_after_a_step_below_the_floor_is_exact() -> None:
    """The raw scale after such a step is negative; the checkpoint and the next forward both see the floor."""
    model = calibrated()
    with torch.no_grad():
        model[3].weight_quantizer.scale[0] = -0.5
    resumed = quantize(net(seed=1), config("lsq-channel"), skip=())
    resumed.load_state_dict(through_disk(model.state_dict()))
    for each in (model, resumed):
        steps(each, torch.optim.SGD(param_groups(each, 0.05)), 3)
    assert same(model.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("how", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_whole_model_can_be_pickled(how: Any) -> None:
    model = calibrated().eval()
    again = how(model)
    assert torch.equal(again(X), model(X))
    assert again[0].activation_quantizer.layer == "0"


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    grads = []
    for wrapped in (False, True):
        model = calibrated().eval()
        x = X.clone().requires_grad_()
        y = checkpoint(model, x, use_reentrant=reentrant) if wrapped else model(x)
        y.square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)


def test_averaged_model_of_a_quantized_model() -> None:
    model = calibrated()
    average = AveragedModel(model)
    steps(model, torch.optim.SGD(param_groups(model, 0.05)), 2)
    average.update_parameters(model)
    model.eval(), average.eval()
    torch.testing.assert_close(average(X), model(X))


def test_safetensors_round_trip() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = calibrated()
    other = quantize(net(seed=1), config("lsq-channel"), skip=())
    other.load_state_dict(safetensors.load(safetensors.save(model.state_dict())))
    assert same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", finest_specs())
def test_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = quantize(net(), config(name), skip=())
    assert all(value.is_meta for key, value in model.state_dict().items() if not key.endswith("_extra_state"))
    source = calibrated(name)
    model.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(model.eval()(X), source.eval()(X))


@pytest.mark.parametrize("init", ["mse", "sigma"])
def test_searched_ranges_on_the_meta_device(init: str) -> None:
    with torch.device("meta"):
        model = quantize(net(), QConfig(QuantSpec(4, granularity=("group", 2), init=init)), skip=())
    assert model[0].weight_quantizer.scale.shape == (4, 2, 3, 3)
