"""Rows from run directories: drift of selections and scores, slices of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import fastqat as fq

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from fastqat._bench import landscape, score_drift
from fastqat._bench.rows import read_rows
from fastqat._bench.run_facts import keep
from fastqat._bench.run_figures import drift_figure, landscape_figure
from fastqat._bench.run_tables import drift_table
from fastqat._bench.study_figures import Evidence, draw_all
from fastqat._errors import CheckpointError, DataError
from fastqat.train.config import TrainConfig
from fastqat.train.run import train


def a_run(folder: Path, selections: Mapping[int, tuple[list[int], Mapping[str, list[float]]]]) -> Path:
    """A run directory with those selections, epoch → (indices, scores), of a pool of four."""
    (folder / "selections").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": "digits", "select": "acs", "seed": 3}))
    for epoch, (indices, scores) in selections.items():
        arrays = {f"score_{name}": np.array(values) for name, values in scores.items()}
        np.savez(folder / "selections" / f"epoch_{epoch:04d}.npz", indices=np.array(indices), labels=np.zeros(4, int), **arrays)
    return folder


def test_drift_of_three_selections(tmp_path: Path) -> None:
    first = {"evs": [1.0, 2.0, 3.0, 4.0]}
    second = {"evs": [4.0, 3.0, 2.0, 1.0], "ds": [1.0, 2.0, 3.0, 4.0]}
    third = {"evs": [1.0, 2.0, 4.0, 3.0], "ds": [1.0, 2.0, 3.0, 5.0]}
    run = a_run(tmp_path / "why" / "acs-seed3", {0: ([2, 3], first), 4: ([0, 1], second), 8: ([0, 3], third)})
    assert score_drift.main([str(run), "--out", str(tmp_path / "drift.csv")]) == 0
    rows = read_rows([tmp_path / "drift.csv"])
    assert {(row["study"], row["cell"], row["select"], row["seed"]) for row in rows} == {("why", "acs", "acs", "3")}
    found = {(int(row["epoch"]), row["measure"]): float(row["value"]) for row in rows}
    assert (found[4, "kept from previous"], found[8, "kept from previous"], found[8, "kept from first"]) == (0.0, 0.5, 0.5)
    assert (found[4, "ever"], found[8, "chance"]) == (1.0, 0.5)
    assert (found[4, "rank evs"], found[8, "rank evs"]) == (-1.0, pytest.approx(-0.8))
    assert (found[8, "rank from first evs"], found[8, "rank ds"]) == (pytest.approx(0.8), 1.0)
    assert (4, "rank ds") not in found and (8, "rank from first ds") in found


def test_a_run_without_two_selections_has_no_rows_and_one_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "why" / "static-seed0", {0: ([1], {})})
    assert score_drift.main([str(run), str(tmp_path / "gone"), "--out", str(tmp_path / "drift.csv")]) == 1
    told = capsys.readouterr()
    assert "0 rows" in told.out and "gone does not exist" in told.err
    assert not (tmp_path / "drift.csv").exists()


def test_rows_of_a_run_are_replaced_and_those_of_others_stay(tmp_path: Path) -> None:
    path, row = tmp_path / "rows.csv", {"study": "s", "cell": "a", "seed": 0, "value": 1}
    keep(path, [row, {**row, "seed": 1}])
    keep(path, [{**row, "value": 2}])
    assert [(old["seed"], old["value"]) for old in read_rows([path])] == [("0", "2"), ("1", "1")]
    with pytest.raises(DataError, match="other columns"):
        keep(path, [{**row, "more": 1}])


def test_directions_have_the_norms_of_the_filters() -> None:
    weights = {"conv": torch.randn(4, 3, 2, 2), "dead": torch.zeros(2, 3)}
    direction = landscape.direction_of(weights, 0)
    assert torch.allclose(direction["conv"].flatten(1).norm(dim=1), weights["conv"].flatten(1).norm(dim=1))
    assert not direction["dead"].any()
    assert torch.equal(landscape.direction_of(weights, 0)["conv"], direction["conv"])
    assert not torch.equal(landscape.direction_of(weights, 1)["conv"], direction["conv"])


def test_step_sizes_stay_and_nets_of_an_architecture_share_directions() -> None:
    net = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4))
    quantized = fq.quantize(net, fq.QConfig(fq.QuantSpec(2, granularity=("group", 4), signed=True), None), skip=())
    assert any(value.ndim > 1 for name, value in quantized.named_parameters() if "scale" in name)
    filters = landscape.filters_of(quantized)
    assert list(filters) == list(landscape.filters_of(net)) == ["0.weight", "2.weight"]
    directions = [landscape.direction_of(landscape.filters_of(one), 0) for one in (net, quantized)]
    assert all(torch.equal(directions[0][name], directions[1][name]) for name in filters)


def test_a_slice_moves_the_weights_and_brings_them_back() -> None:
    model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    direction = landscape.direction_of(landscape.filters_of(model), 7)["weight"]
    found = list(landscape.slice_of(model, [(x, y)], [-0.5, 0.0, 1.0], 7))
    for place, loss, accuracy in found:
        logits = x @ (before["weight"] + place * direction.detach()).T + before["bias"]
        assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
        assert accuracy == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def drift_rows(cell: str, fraction: float, kept: float) -> list[dict[str, str]]:
    """Rows of two seeds and two selections after the first; the seeds are 0.1 apart."""
    facts = {"study": "s", "cell": cell, "fraction": str(fraction), "label_noise": "0.0"}
    measures = {"kept from previous": kept, "kept from first": kept / 2, "ever": 2 * kept, "chance": fraction, "rank evs": 0.5}
    return [
        {
            **facts,
            "seed": str(seed),
            "epoch": str(epoch),
            "measure": name,
            "value": str(value + 0.1 * seed * (name == "kept from previous")),
        }
        for seed in range(2)
        for epoch in (8, 4)
        for name, value in measures.items()
    ]


def test_drift_table() -> None:
    lines = drift_table([*drift_rows("acs", 0.1, 0.3), *drift_rows("ds", 0.3, 0.4)]).splitlines()
    assert lines[2].endswith("pool ever selected (%) | rank of EVS |")
    assert lines[4] == "| acs | 2 | 3 | 35.0 ± 7.1 | 10.0 ± 0.0 | 15.0 ± 0.0 | 60.0 ± 0.0 | 0.50 ± 0.00 |"
    assert lines[5].startswith("| ds | 2 | 3 | 45.0 ± 7.1 | 30.0 ± 0.0 |")


def test_each_size_of_a_selection_has_its_line_of_chance() -> None:
    drawing = drift_figure([*drift_rows("acs", 0.01, 0.3), *drift_rows("more", 0.01, 0.2), *drift_rows("ds", 0.3, 0.4)])
    assert drawing is not None
    lines = [line for line in drawing.figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [np.asarray(line.get_ydata()).tolist() for line in lines] == [[1.0, 1.0], [30.0, 30.0]]


def test_each_level_of_wrong_labels_has_its_float_line() -> None:
    facts = {"study": "s", "seed": "0", "direction": "0", "samples": "9", "data": "d", "model": "m"}
    rows = [
        {**facts, "cell": f"acs{noise}", "label_noise": noise, "net": net, "place": place, "cross_entropy": noise, "accuracy": "0.5"}
        for noise in ("0.0", "0.2")
        for net in ("float", "quantized")
        for place in ("-1", "1")
    ]
    drawing = landscape_figure(rows)
    assert drawing is not None
    lines = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in drawing.figure.axes[0].lines}
    assert lines == {"float, 0 % label noise": [0, 0], "float, 20 % label noise": [0.2, 0.2], "acs0.0": [0, 0], "acs0.2": [0.2, 0.2]}


def test_landscape_of_a_run(tiny: TrainConfig, tmp_path: Path) -> None:
    config = replace(tiny, qconfig="w4a4", float_epochs=1, epochs=2, interval=1, val_interval=2, name="acs-seed0")
    train(config, say=lambda line: None)
    run, out = config.run_dir, tmp_path / "results" / "landscape.csv"
    assert landscape.main([str(run), "--out", str(out), "--samples", "40", "--points", "3", "--directions", "1"]) == 0
    rows = read_rows([out])
    assert [(row["net"], float(row["place"])) for row in rows] == [(net, place) for net in ("float", "quantized") for place in (-1, 0, 1)]
    assert {row["samples"] for row in rows} == {"40"} and all(float(row["cross_entropy"]) > 0 for row in rows)
    assert score_drift.main([str(run), "--out", str(out.with_name("drift.csv"))]) == 0
    written = draw_all(Evidence.read(out.parent), tmp_path / "figures")
    assert [path.name for path in written] == ["runs_drift.png", "runs_landscape.png"]
    for path in (run / "checkpoints").glob("epoch_*.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint of an epoch"):
        landscape.rows_of(run, 10, 2, 1)
