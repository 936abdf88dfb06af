"""QuantSpec: what it accepts, and the integer ranges it stands for."""

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from fastqat.nn import QConfig, quantize
from fastqat.quantizers import Quantizer, QuantSpec, list_quantizers, make_quantizer, register_quantizer
from fastqat.quantizers.layout import ScaleLayout
from fastqat.quantizers.registry import _QUANTIZERS
from fastqat.quantizers.stats import RangeStats


@pytest.mark.parametrize(
    ("spec", "qrange"),
    [
        (QuantSpec(2), (-2, 1)),
        (QuantSpec(4), (-8, 7)),
        (QuantSpec(16), (-32768, 32767)),
        (QuantSpec(1, signed=False), (0, 1)),
        (QuantSpec(16, signed=False), (0, 65535)),
    ],
)
def test_qrange(spec: QuantSpec, qrange: tuple[int, int]) -> None:
    assert spec.qrange() == qrange


def test_qrange_of_an_undecided_sign() -> None:
    spec = QuantSpec(3, signed="auto")
    assert spec.qrange(signed=True) == (-4, 3)
    assert spec.qrange(signed=False) == (0, 7)
    with pytest.raises(ValueError, match="decided at calibration"):
        spec.qrange()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, "2 to 16"),
        ({"bits": 17}, "2 to 16"),
        ({"bits": 1, "signed": "auto"}, "2 to 16"),
        ({"bits": 0, "signed": False}, "1 to 16"),
        ({"bits": 4.0}, "whole numbers"),
        ({"bits": True}, "whole numbers"),
        ({"bits": 4, "signed": "yes"}, "'auto'"),
        ({"bits": 4, "granularity": "row"}, r"'tensor', 'channel', or \('group', n\)"),
        ({"bits": 4, "granularity": "group"}, r"\('group', 64\)"),
        ({"bits": 4, "granularity": ("group", 0)}, "n >= 1"),
        ({"bits": 4, "granularity": ("group", True)}, "n >= 1"),
        ({"bits": 4, "granularity": ("block", 8)}, "'group', n"),
        ({"bits": 4, "quantizer": "dorefa", "granularity": "channel"}, "with quantizer 'dorefa'; accepted: 'tensor'"),
        ({"bits": 4, "grad_factor": "huge"}, "'paper', 'per_scale', 'range', 'none'"),
        ({"bits": 4, "semantics": "floor"}, "'div', 'reciprocal'"),
        ({"bits": 4, "quantizer": "magic"}, "registered: 'dorefa', 'lsq', 'lsq_plus', 'minmax', 'pact'"),
        ({"bits": 4, "init": "magic"}, "'lsq', 'minmax', 'mse', 'sigma'"),
        ({"bits": 4, "quantizer": "minmax", "init": "lsq"}, "'minmax'"),
        ({"bits": 4, "symmetric": False}, "no zero point"),
        ({"bits": 4, "symmetric": 1}, "True or False"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantSpec(**fields)


def test_is_a_frozen_value() -> None:
    spec = QuantSpec(4, granularity="channel")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.bits = 8  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert len({spec, QuantSpec(4, granularity="channel"), QuantSpec(4)}) == 2
    assert QuantSpec(4, granularity=["group", 8]) == QuantSpec(4, granularity=("group", 8)), "as YAML gives it"  # type: ignore[arg-type]


def test_registry() -> None:
    assert {"dorefa", "lsq", "lsq_plus", "minmax", "pact"} <= set(list_quantizers())
    assert all(list_quantizers().values()), "every quantizer says what it is"
    with pytest.raises(ValueError, match="already registered"):
        register_quantizer("lsq")(type("Other", (), {}))  # type: ignore[type-var]


def test_bad_role_and_missing_channels() -> None:
    with pytest.raises(ValueError, match="'weight', 'activation'"):
        make_quantizer(QuantSpec(4), "output")
    with pytest.raises(ValueError, match="channels= and axis="):
        make_quantizer(QuantSpec(4, granularity="channel"), "weight")


def test_what_groups_cannot_be_made_of() -> None:
    spec = QuantSpec(4, granularity=("group", 3))
    with pytest.raises(ValueError, match=r"layer 'fc': groups of 3 do not divide the 8 inputs of its weight \[4, 8\]; .*overrides="):
        make_quantizer(spec, "weight", shape=(4, 8), layer="fc")
    with pytest.raises(ValueError, match="layer 'fc': .*for weights only: use 'tensor' or 'channel'"):
        make_quantizer(spec, "activation", channels=6, axis=1, layer="fc")
    for shape in (None, (6,)):
        with pytest.raises(ValueError, match="pass its shape="):
            make_quantizer(spec, "weight", shape=shape)


def test_a_new_quantizer_is_one_registered_class() -> None:
    @register_quantizer("ternary")
    class Ternary(Quantizer):
        """Scale by the mean magnitude, fixed afterwards."""

        inits = ("mean",)

        def __init__(self, spec: QuantSpec, role: str, layout: ScaleLayout):
            super().__init__(spec, role, layout)
            self.register_buffer("scale", torch.ones(self.size))
            self.zero_point = None

        def set_range(self, stats: RangeStats) -> None:
            self.scale.copy_(stats.mean_abs)

    try:
        assert list_quantizers()["ternary"] == "Scale by the mean magnitude, fixed afterwards."
        model = quantize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), QConfig(QuantSpec(2, "ternary")), skip="last")
        torch.testing.assert_close(model[0].weight_quantizer.scale, model[0].weight.detach().abs().mean().reshape(1))
        assert model(torch.randn(2, 4)).shape == (2, 4)
    finally:
        del _QUANTIZERS["ternary"]
