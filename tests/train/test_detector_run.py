"""Runs of a detector: the loss falls, average precision rises, selections change, and a run that was cut comes to the same bits."""

import copy
import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastqat import cli
from fastqat._errors import CheckpointError, DataError, FastqatError, InputError
from fastqat.train.checkpoint import load_state
from fastqat.train.detection import CocoFolder, make_detector, train_detector
from fastqat.train.detection.precision import MEASURES, _measure, _results, average_precision
from fastqat.train.detection.stage import DetectorStage

from .detection_runs import quiet, shapes, tiny_detector, tiny_run

pytest.importorskip("torchvision")
pytest.importorskip("PIL")
pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = ("samples_per_second", "seconds", "selection_seconds")


def rows_of(config):
    with open(config.run_dir / "metrics.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def selections_of(config):
    return [dict(np.load(path)) for path in sorted((config.run_dir / "selections").glob("*.npz"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """A run that nothing disturbed."""
    threads = torch.get_num_threads()
    config = tiny_run(tmp_path_factory.mktemp("reference"), data, select="acs", loss="kd")
    train_detector(config, say=quiet)
    torch.set_num_threads(threads)
    return config


def test_the_loss_falls_and_precision_rises_above_the_untrained_models(tmp_path):
    pytest.importorskip("pycocotools")
    data = shapes(tmp_path, pictures=64)
    slowly = {"float_lr": 0.008, "warmup_steps": 16, "lr": 0.0016}
    config = tiny_run(tmp_path, data, val_split="val", float_epochs=8, val_interval=20, select="acs", **slowly)
    summary = train_detector(config, say=quiet)
    untrained = average_precision(tiny_detector(), CocoFolder(data, "val", keep_empty=True), progress=False)
    assert untrained["ap50"] < 0.05 and summary["float_ap"] > 0.08 and summary["ap"] > 0.04 and summary["ap50"] > 0.2
    losses = {stage: [float(row["train_loss"]) for row in rows_of(config) if row["stage"] == stage] for stage in ("float", "qat")}
    assert losses["float"][-1] < 0.6 * losses["float"][0] and losses["qat"][-1] < losses["qat"][0]
    assert [row["ap"] != "" for row in rows_of(config)] == [False] * 7 + [True] + [False] * 3 + [True]
    assert float(rows_of(config)[-1]["ap"]) == pytest.approx(summary["ap"], rel=1e-4)
    model, val = tiny_detector(), CocoFolder(data, "val", keep_empty=True)
    model.load_state_dict(load_state(config.run_dir / "checkpoints" / "float.pt")["model"])
    assert average_precision(model, val, progress=False)["ap"] == summary["float_ap"]
    assert average_precision(model, val, progress=False, amp=True)["ap"] == pytest.approx(summary["float_ap"], abs=0.01)


def test_a_run_leaves_what_it_says(reference):
    summary = json.loads((reference.run_dir / "summary.json").read_text())
    assert summary["gradient_steps"] == 4 * 2 and summary["scoring_forwards"] == 16 + 32
    assert 8 <= summary["unique_samples"] <= 16 and summary["ap"] is None and summary["select"] == "acs"
    assert sorted(path.name for path in (reference.run_dir / "checkpoints").iterdir()) == [
        "best.pt", "epoch_0002.pt", "epoch_0003.pt", "float.pt"
    ]  # fmt: skip
    rows = rows_of(reference)
    assert [(row["stage"], row["epoch"], row["selected"], row["reselected"]) for row in rows] == [
        ("float", "0", "16", "0"), ("float", "1", "16", "0"),
        ("qat", "0", "8", "1"), ("qat", "1", "8", "0"), ("qat", "2", "8", "1"), ("qat", "3", "8", "0"),
    ]  # fmt: skip
    assert [row["beta"] for row in rows[2:]] == ["1", "0.92388", "0.707107", "0.382683"]


def test_selections_change_and_follow_the_scores(reference):
    first, second = selections_of(reference)
    assert set(first) == {"indices", "image_ids", "score_evs", "score_acs"} and set(second) == {*first, "score_ds"}
    for arrays in (first, second):
        assert arrays["indices"].tolist() == np.argsort(-arrays["score_acs"], kind="stable")[:8].tolist()
    assert set(first["indices"]) != set(second["indices"])


class Cut(Exception):
    """Stands in for a kill."""


def cut_after(lines: int):
    told = []

    def say(line: str) -> None:
        told.append(line)
        if len(told) > lines:
            raise Cut

    return say


@pytest.mark.parametrize("lines", [2, 4], ids=["in float training", "in quantized training"])
def test_a_run_that_was_cut_comes_to_the_same_bits(data, reference, tmp_path, lines):
    config = replace(reference, runs=tmp_path)
    with pytest.raises(Cut):
        train_detector(config, say=cut_after(lines))
    with pytest.raises(InputError, match="continue it with --resume"):
        train_detector(config, say=quiet)
    told = []
    train_detector(replace(config, resume=True), say=told.append)
    assert any("resumed after epoch" in line for line in told)
    for name in ("float.pt", "best.pt", "epoch_0003.pt"):
        assert_same(*(load_state(c.run_dir / "checkpoints" / name) for c in (config, reference)))
    ours, theirs = ([{k: v for k, v in row.items() if k not in TIMES} for row in rows_of(c)] for c in (config, reference))
    assert ours == theirs
    assert train_detector(replace(config, resume=True), say=told.append) and "is finished" in told[-1]


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {*TIMES}:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_same(*pair)
    else:
        assert a == b


def test_damaged_float_weights_are_trained_again(reference, tmp_path):
    config = replace(reference, runs=tmp_path)
    with pytest.raises(Cut):
        train_detector(config, say=cut_after(4))
    path = config.run_dir / "checkpoints" / "float.pt"
    path.write_bytes(path.read_bytes()[:1000])
    told = []
    train_detector(replace(config, resume=True), say=told.append)
    assert any("damaged" in line and "trained again" in line for line in told)
    assert_same(*(load_state(c.run_dir / "checkpoints" / "epoch_0003.pt") for c in (config, reference)))


@pytest.mark.parametrize("select", ["none", "random", "rs2", "evs", "ds"])
def test_every_selection_trains(data, reference, tmp_path, select):
    weights = reference.run_dir / "checkpoints" / "float.pt"
    config = tiny_run(tmp_path, data, select=select, float_checkpoint=weights, epochs=1, amp=select == "ds", optimizer="adam")
    summary = train_detector(config, say=quiet)
    assert summary["unique_samples"] == (16 if select == "none" else 8)
    assert summary["scoring_forwards"] == {"evs": 16, "ds": 32}.get(select, 0)
    assert [row["stage"] for row in rows_of(config)] == ["qat"]


def test_a_model_of_the_users_own_and_no_quantization(data, tmp_path):
    model = tiny_detector(5)
    before = model.backbone.fpn.inner_blocks[0][0].weight.clone()
    config = tiny_run(tmp_path, data, qconfig="none", select="none", float_epochs=1, epochs=0)
    summary = train_detector(config, model=model, say=quiet)
    assert summary["gradient_steps"] == 0 and not torch.equal(before, model.backbone.fpn.inner_blocks[0][0].weight)


def test_precision_is_whole_for_boxes_that_are_right_and_none_without_boxes(data):
    pytest.importorskip("pycocotools")
    folder = CocoFolder(data, "train", keep_empty=True)
    targets = [folder.target(i) for i in range(len(folder))]
    right = [
        row
        for image, target in zip(folder.image_ids, targets, strict=True)
        for row in _results(image, {**target, "scores": torch.ones(len(target["labels"]))})
    ]
    found = _measure(folder, right)
    assert found["ap"] == found["ap50"] == found["ap_small"] == pytest.approx(1.0) and list(found) == list(MEASURES)
    assert math.isnan(found["ap_large"])  # there is no such box
    nothing = _measure(folder, [])
    assert nothing["ap"] == nothing["ap_small"] == 0 and math.isnan(nothing["ap_large"])
    assert math.isnan(_measure(CocoFolder(data, "train", limit=1), [])["ap_large"])


def test_what_no_run_can_do_is_refused_before_anything_is_written(data, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="selects none"):
        train_detector(tiny_run(tmp_path, data, fraction=0.01), say=quiet)
    with pytest.raises(InputError, match="must be a RetinaNet"):
        train_detector(tiny_run(tmp_path, data), model=torch.nn.Linear(2, 2), say=quiet)
    with pytest.raises(InputError, match="has 3 classes and the category ids go up to 3; give it num_classes=4"):
        train_detector(tiny_run(tmp_path, data), model=make_detector("retinanet_tiny", 3), say=quiet)
    with pytest.raises(InputError, match="w4"):
        train_detector(tiny_run(tmp_path, data, qconfig="w4"), say=quiet)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        train_detector(tiny_run(tmp_path, data), say=quiet)
    assert not (tmp_path / "runs").exists()


def test_splits_with_other_categories_are_refused(tmp_path):
    pytest.importorskip("pycocotools")
    data = shapes(tmp_path, pictures=2)
    path = data / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace("square", "cube"))
    with pytest.raises(DataError, match="other categories"):
        train_detector(tiny_run(tmp_path, data, val_split="val"), say=quiet)


def test_other_settings_other_data_and_a_loss_that_is_not_finite_are_told(data, tmp_path):
    config = tiny_run(tmp_path, shapes(tmp_path, pictures=8), select="none")
    with pytest.raises(Cut):
        train_detector(config, say=cut_after(1))
    with pytest.raises(CheckpointError, match=r"lr 0.004 \(now 0.1\)"):
        train_detector(replace(config, resume=True, lr=0.1), say=quiet)
    with open(config.data / "train" / "000001.png", "ab") as handle:
        handle.write(b"\0")
    with pytest.raises(CheckpointError, match="other data"):
        train_detector(replace(config, resume=True), say=quiet)
    with pytest.raises(FastqatError, match="training diverged: the loss of float epoch"):
        train_detector(tiny_run(tmp_path, data, float_lr=1e30, warmup_steps=0, name="high"), say=quiet)


def test_report_and_score_say_that_they_are_for_classification(reference, capsys):
    for command in ("report", "score"):
        assert cli.main([command, str(reference.run_dir)]) == 2
        assert "is a run of a detector and this is for classification" in capsys.readouterr().err


def test_a_short_float_training_reaches_its_rate_and_logs_it(data, tmp_path):
    config = tiny_run(tmp_path, data, warmup_steps=500, float_epochs=3, epochs=0)
    train_detector(config, say=quiet)
    rates = [float(row["lr"]) for row in rows_of(config)]  # of the last of the four steps of each epoch
    assert rates == pytest.approx([0.02 * (1 + math.cos(math.pi * (epoch + 0.75) / 3)) / 2 for epoch in range(3)], rel=1e-5)


def test_clipped_gradients_move_weights_less(data, tmp_path):
    start = tiny_detector(2)
    far = []
    for name, norm in (("free", None), ("clipped", 1e-3)):
        model = copy.deepcopy(start)
        config = tiny_run(tmp_path, data, name=name, max_grad_norm=norm, float_epochs=1, epochs=0, qconfig="none", momentum=0.0)
        train_detector(config, model=model, say=quiet)
        moved = [(a - b).square().sum() for a, b in zip(model.parameters(), start.parameters(), strict=True)]
        far.append(torch.stack(moved).sum().sqrt().item())
    assert far[1] <= 4 * 0.02 * 1e-3 * 1.1 + 1e-4 < far[0]


def test_training_stops_soon_after_a_loss_that_is_not_finite(data, tmp_path, monkeypatch):
    monkeypatch.setattr("fastqat.train.detection.stage._LOOK_EVERY", 1)
    steps = []
    monkeypatch.setattr(DetectorStage, "_step", lambda self, x, y: steps.append(len(x)) or torch.tensor([1.0, math.nan]))
    with pytest.raises(FastqatError, match="training diverged: the loss of float epoch 0"):
        train_detector(tiny_run(tmp_path, data), say=quiet)
    assert len(steps) == 1


def test_batch_norm_is_estimated_again_from_so_many_pictures(data, reference, tmp_path):
    weights = reference.run_dir / "checkpoints" / "float.pt"
    for select, forwards in (("evs", 16 + 2 * (2 * 4)), ("random", 2 * 4)):  # before scoring and at the end
        config = tiny_run(tmp_path, data, select=select, name=select, float_checkpoint=weights, epochs=1, bn_reestimate=2)
        assert train_detector(config, say=quiet)["scoring_forwards"] == forwards


def test_val_limit_evaluates_so_many_pictures(data, tmp_path, monkeypatch):
    pytest.importorskip("pycocotools")
    seen = []
    monkeypatch.setattr(
        "fastqat.train.detection.stage.average_precision", lambda model, val, **o: seen.append(len(val)) or dict.fromkeys(MEASURES, 0.5)
    )
    summary = train_detector(tiny_run(tmp_path, data, val_split="val", val_limit=3, float_epochs=1, epochs=1), say=quiet)
    assert seen == [3, 3] and summary["float_ap"] == 0.5  # the float stage's own evaluation counts
