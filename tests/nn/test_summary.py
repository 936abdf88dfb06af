"""summary(): one row per layer, and a table to print."""

import torch
from torch import nn

from fastqat.nn import FakeQuantize, QConfig, calibrate, quantize, summary
from fastqat.quantizers import QuantSpec


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


def test_prints_as_a_table() -> None:
    table = summary(quantize(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "w4a4", skip="first"))
    lines = str(table).splitlines()
    assert len(lines) == 1 + len(table) == 3
    assert lines[0].split() == ["layer", "type", "weight", "activation", "left", "alone", "because"]
    assert repr(table) == str(table)


def test_a_model_that_was_never_quantized() -> None:
    assert [row.note for row in summary(nn.Linear(2, 2))] == ["not converted: call fastqat.quantize"]
