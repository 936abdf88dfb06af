"""param_groups(): every parameter once, in the group it belongs to."""

import pytest
import torch
from torch import nn

from fastqat.nn import FakeQuantize, QConfig, param_groups, quantize
from fastqat.quantizers import QuantSpec


def model() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.LayerNorm(4), nn.PReLU(), nn.LSTM(4, 4),
        nn.Linear(4, 2), FakeQuantize(QuantSpec(8)),
    )  # fmt: skip
    return quantize(net, "w4a4", skip="last")


def test_every_parameter_exactly_once_in_its_group() -> None:
    net = model()
    groups = {group["name"]: group for group in param_groups(net, 0.1, scale_lr=0.01, weight_decay=1e-4)}
    names = {id(p): name for name, p in net.named_parameters()}
    listed = [names.pop(id(p)) for group in groups.values() for p in group["params"]]
    assert not names and len(listed) == len(set(listed))
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in groups.values()} == {
        "weights": (0.1, 1e-4),
        "no_decay": (0.1, 0.0),
        "scales": (0.01, 0.0),
    }
    assert len(groups["scales"]["params"]) == 5
    assert all(p.dim() >= 2 for p in groups["weights"]["params"])
    norm_weight = net[4].weight
    assert any(p is norm_weight for p in groups["no_decay"]["params"])


def test_clipping_values_decay_like_the_weights() -> None:
    config = QConfig(QuantSpec(4), QuantSpec(4, "pact", signed="auto"))
    net = quantize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), config, skip=())
    groups = {group["name"]: group for group in param_groups(net, 0.1, scale_lr=0.01, weight_decay=1e-4)}
    assert [p is layer.activation_quantizer.alpha for p, layer in zip(groups["clips"]["params"], net, strict=True)] == [True, True]
    assert (groups["clips"]["lr"], groups["clips"]["weight_decay"]) == (0.01, 1e-4)
    assert len(groups["scales"]["params"]) == 2 and groups["scales"]["weight_decay"] == 0
    assert sum(len(group["params"]) for group in groups.values()) == len(list(net.parameters()))


def test_activation_quantizers_at_their_own_rate() -> None:
    config = QConfig(QuantSpec(4, "pact"), QuantSpec(4, "lsq_plus", signed="auto", symmetric=False))
    net = quantize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), config, skip=())
    groups = {group["name"]: group for group in param_groups(net, 0.1, 0.02, 1e-4, activation_scale_lr=0.003)}
    assert {name: (group["lr"], group["weight_decay"], len(group["params"])) for name, group in groups.items()} == {
        "weights": (0.1, 1e-4, 2),
        "no_decay": (0.1, 0.0, 2),
        "clips": (0.02, 1e-4, 2),
        "activation_scales": (0.003, 0.0, 4),
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(list(net.parameters()))


def test_shared_parameters_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net = quantize(nn.Sequential(net, net[2]), "w4a32", skip=())
    params = [p for group in param_groups(net, 0.1) for p in group["params"]]
    assert len(params) == len({id(p) for p in params}) == len(list(net.parameters()))
    assert net[0][0].weight is net[0][1].weight


def test_no_empty_groups_and_default_rate() -> None:
    net = quantize(nn.Linear(4, 2, bias=False), QConfig(QuantSpec(4)), skip=())
    groups = param_groups(net, 0.1)
    assert [(group["name"], group["lr"]) for group in groups] == [("weights", 0.1), ("scales", 0.1)]
    torch.optim.AdamW(groups)


@pytest.mark.parametrize(
    "arguments", [{"lr": -1.0}, {"lr": 1.0, "scale_lr": -1.0}, {"lr": 1.0, "weight_decay": -1.0}, {"lr": 1.0, "activation_scale_lr": -1.0}]
)
def test_negative_rates(arguments: dict) -> None:
    with pytest.raises(ValueError, match="accepted: 0 or more"):
        param_groups(nn.Linear(2, 2), **arguments)
