"""Grids and checkpoints that no quantizer takes."""

import pytest
import torch
from torch import nn

from fastqat.quantizers import QuantSpec, list_quantizers, make_quantizer


def model(name: str, **fields: object) -> nn.ModuleDict:
    quantizer = make_quantizer(QuantSpec(4, name, **fields), "weight", layer="a")
    quantizer.initialise_from(torch.linspace(-1, 1, 9))
    return nn.ModuleDict({"a": nn.ModuleDict({"weight_quantizer": quantizer})})


@pytest.mark.parametrize("fields", [{"quantizer": "lsq"}, {"quantizer": "minmax", "symmetric": False}])
def test_values_too_large_for_a_scale(fields: dict[str, object]) -> None:
    quantizer = make_quantizer(QuantSpec(**{"bits": 4, **fields}), "weight", layer="a")
    with pytest.raises(ValueError, match="layer 'a': init .* finds no usable grid for its weight"):
        quantizer.initialise_from(torch.tensor([-3e38, 3e38, 3e38]))
    assert not quantizer.calibrated


@pytest.mark.parametrize(
    ("name", "entry", "bad"),
    [("lsq_plus", "offset", torch.nan), ("minmax", "zero_point", 8), ("minmax", "zero_point", -9), ("minmax", "scale", torch.inf)],
)
def test_bad_entries_of_a_checkpoint(name: str, entry: str, bad: float) -> None:
    net = model(name, symmetric=False)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    state[f"a.weight_quantizer.{entry}"].fill_(bad)
    with pytest.raises(ValueError, match=f"layer 'a': the checkpoint's weight {entry} is"):
        net.load_state_dict(state)


@pytest.mark.parametrize("own", list_quantizers())
@pytest.mark.parametrize("other", list_quantizers())
def test_checkpoint_of_another_quantizer(own: str, other: str) -> None:
    net, state = model(own), model(other).state_dict()
    if own == other:
        net.load_state_dict(state)
        return
    with pytest.raises(ValueError, match=f"layer 'a': the checkpoint's weight quantizer is {other}, the model's is {own};"):
        net.load_state_dict(state, strict=False)


def test_checkpoint_from_before_names_were_saved() -> None:
    state = {key: value[:3] if key.endswith("_extra_state") else value for key, value in model("pact").state_dict().items()}
    model("pact").load_state_dict(state)
    with pytest.raises(ValueError, match="layer 'a': .*another one, with the entries alpha.*the model's is lsq;"):
        model("lsq").load_state_dict(state, strict=False)
