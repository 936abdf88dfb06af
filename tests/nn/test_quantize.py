"""quantize(): which layers are swapped, and what is said about the others."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fastqat.nn import FakeQuantize, QConfig, QuantConv2d, QuantLinear, calibrate, quantize, summary
from fastqat.quantizers import QuantSpec


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.conv1(x).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = Block()
        self.layer2 = Block()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


def swapped(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, (QuantConv2d, QuantLinear))]


BLOCKS = ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"]


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (("first", "last"), BLOCKS),
        ("first", [*BLOCKS, "fc"]),
        (("last",), ["stem", *BLOCKS]),
        ((), ["stem", *BLOCKS, "fc"]),
    ],
)
def test_skip(skip: object, expected: list[str]) -> None:
    assert swapped(quantize(Net(), "w4a4", skip=skip)) == expected


def test_filter_and_overrides() -> None:
    config = QConfig(QuantSpec(4), None, overrides={"layer1.conv2": None, "layer1.*": "w8a32", "fc": QConfig(QuantSpec(6))})
    model = quantize(Net(), config, filter_fn=lambda name, layer: "layer2" not in name)
    assert swapped(model) == ["layer1.conv1", "fc"]
    assert model.layer1.conv1.weight_quantizer.spec.bits == 8
    assert model.fc.weight_quantizer.spec.bits == 6, "an override wins over skip"
    notes = {row.name: row.note for row in summary(model)}
    assert notes["layer2.conv1"] == "filter_fn"
    assert notes["layer1.conv2"] == "override 'layer1.conv2'"
    assert notes["stem"] == "skip='first'"


def test_short_strings() -> None:
    config = QConfig.parse("w2a4:channel")
    assert config.weight == QuantSpec(2, granularity="channel")
    assert config.activation == QuantSpec(4, signed="auto")
    assert QConfig.parse("w32a8").weight is None
    assert QConfig.parse("W4A8:group64").weight == QuantSpec(4, granularity=("group", 64))
    assert QConfig.parse("w4a8:group64").activation.granularity == "tensor"
    with pytest.raises(ValueError, match="n >= 1"):
        QConfig.parse("w4a4:group0")
    for bad in ("4", "w4", "w4a4:row", "w4a4:group", "w4a4channel", ""):
        with pytest.raises(ValueError, match="accepted: 'w4a4'"):
            QConfig.parse(bad)
    with pytest.raises(ValueError, match="2 to 16"):
        QConfig.parse("w1a4")
    with pytest.raises(ValueError, match="quantizes nothing"):
        QConfig.parse("w32a32")


def test_copy_or_in_place() -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    quantized = quantize(model, "w4a4")
    assert not swapped(model) and model.state_dict().keys() == before.keys()
    assert quantized.layer1.conv1.weight is not model.layer1.conv1.weight
    conv, weight = model.layer1.conv1, model.layer1.conv1.weight
    assert quantize(model, "w4a4", inplace=True) is model
    assert model.layer1.conv1 is conv and conv.weight is weight and isinstance(conv, QuantConv2d)


def test_keeps_mode_hooks_and_gradient_flags() -> None:
    model = Net().eval()
    calls = []
    model.layer1.conv1.register_forward_hook(lambda *args: calls.append(1))
    model.layer1.conv2.weight.requires_grad_(False)
    quantized = quantize(model, "w4a32")
    quantized(torch.randn(1, 3, 5, 5))
    assert calls == [1] and not quantized.layer1.conv2.weight.requires_grad
    assert not any(module.training for module in quantized.modules())


def test_weight_only_runs_without_calibration_and_is_close_at_8_bits() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(quantize(model, QConfig(QuantSpec(8, init="minmax")))(x), model(x), rtol=0.05, atol=0.02)


def test_a_layer_used_twice_is_one_layer() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = quantize(nn.Sequential(conv, nn.ReLU(), conv), "w4a4", skip=())
    assert model[0] is model[2] and isinstance(model[0], QuantConv2d)
    calibrate(model, [torch.randn(2, 4, 6, 6)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(2, 4, 6, 6)).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


class MyLinear(nn.Linear):
    pass


def test_subclasses_and_computed_weights_are_reported() -> None:
    layers = {
        "subclass": MyLinear(4, 4),
        "parametrized": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "old_norm": nn.utils.spectral_norm(nn.Linear(4, 4)),
        "pruned": prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
        "wrapped": nn.Linear(4, 4),
        "plain": nn.Linear(4, 4),
    }
    layers["wrapped"].forward = layers["wrapped"].forward
    model = nn.ModuleDict(layers)
    with pytest.warns(UserWarning, match="5 layers cannot be swapped.*subclass, parametrized, old_norm, pruned, wrapped"):
        quantized = quantize(model, "w4a32", skip=(), inplace=True)
    assert swapped(quantized) == ["plain"]
    notes = {row.name: row.note for row in summary(quantized)}
    assert "MyLinear is a subclass of Linear" in notes["subclass"]
    assert "parametrize" in notes["parametrized"]
    assert "hook" in notes["old_norm"] and "hook" in notes["pruned"]
    assert "forward was replaced" in notes["wrapped"]


def test_a_model_that_torch_cannot_copy() -> None:
    model = nn.Sequential(prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"cannot be copied.*inplace=True"):
        quantize(model, "w4a32", skip=())


def test_attention_is_left_alone_and_encoder_layers_do_not_bypass_the_quantizers() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 2)
    with pytest.warns(UserWarning, match="out_proj"):
        quantized = quantize(model, "w2a2", skip=())
    assert swapped(quantized) == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    x = torch.randn(3, 5, 8)
    calibrate(quantized, [x])
    quantized.eval()
    with torch.no_grad():
        fused = quantized(x)
    torch.testing.assert_close(fused, quantized(x))
    assert (fused - model.eval()(x)).abs().max() > 0.01, "two bits must be seen in eval mode too"


def test_nothing_to_quantize() -> None:
    with pytest.raises(ValueError, match="no layer that can be quantized"):
        quantize(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), "w4a4")
    with pytest.raises(ValueError, match=r"left alone \(0: skip='first'; 1: skip='last'\)"):
        quantize(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "w4a4")
    with pytest.raises(ValueError, match="skip='first'"):
        quantize(nn.Linear(2, 2), "w4a4")
    with pytest.raises(ValueError, match="not quantized yet"):
        quantize(quantize(nn.Linear(2, 2), "w4a4", skip=()), "w4a4", skip=())


def test_the_model_itself_may_be_a_layer() -> None:
    assert isinstance(quantize(nn.Linear(2, 2), "w4a4", skip=()), QuantLinear)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": 4}, "accepted: a string such as 'w4a4'"),
        ({"config": "w4a4", "skip": ("middle",)}, "'first', 'last'"),
        ({"config": QConfig(QuantSpec(4), overrides={"layer9.*": None})}, "'layer9.*' matches no"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(Net(), **arguments)


def test_bad_configs() -> None:
    with pytest.raises(ValueError, match="accepted: a QuantSpec"):
        QConfig("w4a4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"overrides is \['fc'\]; accepted: a mapping"):
        QConfig(QuantSpec(4), overrides=["fc"])  # type: ignore[arg-type]
    for third in (QuantSpec(4), {"fc": None}):
        with pytest.raises(TypeError, match="positional"):
            QConfig(QuantSpec(4), QuantSpec(4), third)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="accepted: a QConfig, a string"):
        QConfig(QuantSpec(4), overrides={"fc": 8})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="overrides of its own"):
        QConfig(QuantSpec(4), overrides={"fc": QConfig(QuantSpec(4), overrides={"x": None})})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_weights_name_the_layer_and_leave_the_model_as_it_was(bad: float) -> None:
    model = Net()
    with torch.no_grad():
        model.layer2.conv2.weight[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"layer 'layer2\.conv2': its weight holds NaN"):
        quantize(model, "w4a4", inplace=True)
    assert not swapped(model)


def test_empty_weight() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(0, 3))
    with pytest.raises(ValueError, match="layer '0': its weight is empty"):
        quantize(model, "w4a4", skip=())


def test_quantizers_placed_by_hand_get_their_names() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.out = FakeQuantize(QuantSpec(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.fc(x))

    model = quantize(Add(), "w4a32", skip=())
    with pytest.raises(RuntimeError, match="layer 'out'"):
        model(torch.randn(1, 2))


def test_layers_built_by_hand_get_their_names_at_calibration() -> None:
    model = nn.Sequential(nn.Flatten(), QuantLinear(4, 2, weight=QuantSpec(4), activation=QuantSpec(4)))
    calibrate(model, [torch.randn(3, 4)])
    assert model[1].activation_quantizer.layer == model[1].weight_quantizer.layer == "1"
