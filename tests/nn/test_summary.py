"""summary(): one row per layer, and a table to print."""

import pytest
import torch
from torch import nn

from fastqat.nn import FakeQuantize, QConfig, calibrate, quantize, summary
from fastqat.quantizers import QuantSpec

from ..quantizers.variants import weight_specs


def test_rows_say_what_each_layer_is() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), FakeQuantize(QuantSpec(8)), nn.ConvTranspose2d(4, 4, 3),
        nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip
    weight = QuantSpec(4, granularity="channel")
    model = quantize(net, QConfig(weight, QuantSpec(4, "minmax", signed="auto", symmetric=False)))
    before = {row.name: row for row in summary(model)}
    assert list(before) == ["0", "1", "3", "4", "5", "7"]
    assert before["0"].note == "skip='first'" and before["7"].note == "skip='last'"
    assert before["1"].note == "norms stay float" and before["5"].note == "no quantized form of this type"
    assert before["3"].activation == "4 bit minmax per tensor, not calibrated"
    assert before["3"].weight.startswith("4 bit signed lsq per channel, scale ")
    calibrate(model, [torch.rand(2, 3, 6, 6)])
    after = {row.name: row for row in summary(model)}
    assert "range [" in after["3"].activation and after["4"].weight == "-"


@pytest.mark.parametrize("label", weight_specs())
def test_a_row_for_every_quantizer(label: str) -> None:
    spec = weight_specs()[label]
    activation = QuantSpec(4, spec.quantizer, signed="auto", symmetric=spec.symmetric)
    model = quantize(nn.Sequential(nn.Linear(8, 4)), QConfig(spec, activation), skip=())
    per = {"tensor": "tensor", "channel": "channel"}.get(spec.granularity, "group of 4")
    (row,) = summary(model)
    assert row.activation == f"4 bit {spec.quantizer} per tensor, not calibrated"
    calibrate(model, [torch.rand(3, 8)])
    (row,) = summary(model)
    assert row.weight.startswith(f"4 bit signed {spec.quantizer} per {per}, scale ") and "range [-" in row.weight
    assert row.activation.startswith(f"4 bit unsigned {spec.quantizer} per tensor, scale ") and "range [0, " in row.activation.replace(
        "-0", "0"
    )
    assert f"per {per}" in repr(model[0].weight_quantizer)


def test_prints_as_a_table() -> None:
    table = summary(quantize(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "w4a4", skip="first"))
    lines = str(table).splitlines()
    assert len(lines) == 1 + len(table) == 3
    assert lines[0].split() == ["layer", "type", "weight", "activation", "left", "alone", "because"]
    assert repr(table) == str(table)


def test_a_model_that_was_never_quantized() -> None:
    assert [row.note for row in summary(nn.Linear(2, 2))] == ["not converted: call fastqat.quantize"]
