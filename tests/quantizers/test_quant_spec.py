"""QuantSpec: what it accepts, and the integer ranges it stands for."""

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from fastqat.nn import QConfig, quantize
from fastqat.quantizers import Quantizer, QuantSpec, list_quantizers, make_quantizer, register_quantizer
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
        ({"bits": 4, "granularity": "row"}, "'tensor', 'channel'"),
        ({"bits": 4, "grad_factor": "huge"}, "'paper', 'per_scale', 'range', 'none'"),
        ({"bits": 4, "semantics": "floor"}, "'div', 'reciprocal'"),
        ({"bits": 4, "quantizer": "magic"}, "registered: 'lsq', 'minmax'"),
        ({"bits": 4, "init": "magic"}, "'lsq', 'minmax'"),
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


def test_registry() -> None:
    assert {"lsq", "minmax"} <= set(list_quantizers())
    assert all(list_quantizers().values()), "every quantizer says what it is"
    with pytest.raises(ValueError, match="already registered"):
        register_quantizer("lsq")(type("Other", (), {}))  # type: ignore[type-var]


def test_bad_role_and_missing_channels() -> None:
    with pytest.raises(ValueError, match="'weight', 'activation'"):
        make_quantizer(QuantSpec(4), "output")
    with pytest.raises(ValueError, match="channels= and axis="):
        make_quantizer(QuantSpec(4, granularity="channel"), "weight")


def test_a_new_quantizer_is_one_registered_class() -> None:
    @register_quantizer("ternary")
    class Ternary(Quantizer):
        """Scale by the mean magnitude, fixed afterwards."""

        inits = ("mean",)

        def __init__(self, spec: QuantSpec, role: str, *, channels: int | None = None, axis: int | None = None):
            super().__init__(spec, role, channels=channels, axis=axis)
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
