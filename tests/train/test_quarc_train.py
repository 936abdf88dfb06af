"""QuaRC in the trainer: selection and correction by settings, what is logged, names, and resuming to the same bits."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastqat._errors import CheckpointError, InputError
from fastqat.methods import CascadedCorrection, QuaRCSubset
from fastqat.train.checkpoint import load_state
from fastqat.train.config import TrainConfig
from fastqat.train.engine import _Tally
from fastqat.train.run import train
from tests.processes import Ranks

from .conftest import tiny_config
from .test_resume import assert_same, metric_rows, quiet

QUARC = {"select": "quarc", "loss": "kd_clc"}


def metrics(config: TrainConfig) -> list[dict[str, str]]:
    with open(config.run_dir / "metrics.csv", newline="") as handle:
        return [row for row in csv.DictReader(handle) if row["stage"] == "qat"]


def test_selection_correction_and_their_columns(tiny):
    config = replace(tiny, **QUARC, score_normalize="rank", clc_ratio=0.5)
    summary = train(config, say=quiet)
    assert summary["select"] == "quarc" and summary["loss"] == "kd_clc"
    rows = metrics(config)
    assert [row["mean_res"] != "" for row in rows] == [True, False, True, False]
    assert [float(row["beta"]) for row in rows] == pytest.approx([math.cos(math.pi * t / 8) for t in range(4)], rel=1e-4)
    assert all(float(row["clc_ratio"]) == pytest.approx(0.5, rel=0.5) for row in rows)
    for epoch in (0, 2):
        arrays = np.load(config.run_dir / f"selections/epoch_{epoch:04d}.npz")
        assert {"score_evs", "score_ds", "score_res", "score_quarc"} <= set(arrays)
        for name in ("evs", "ds", "res"):
            assert float(rows[epoch][f"mean_{name}"]) == pytest.approx(arrays[f"score_{name}"].mean(), rel=1e-4)
        best = arrays["score_quarc"][arrays["indices"]]
        assert (np.diff(best) <= 0).all() and arrays["score_res"].min() >= 0
    assert load_state(config.run_dir / "checkpoints/epoch_0003.pt")["objective"]["means"].shape == (2,)


def test_the_correction_is_what_the_settings_say(tiny, monkeypatch):
    made = []
    original = CascadedCorrection.__init__

    def recording(self, *args, **options):
        made.append(options)
        original(self, *args, **options)

    monkeypatch.setattr(CascadedCorrection, "__init__", recording)
    settings = {"layers": "layer*.0,fc", "distribution": "flat", "reduction": "rows", "weight": 7.0, "balance": "fixed", "ratio": 1.0}
    settings |= {"block_input": "student", "grad": "block"}
    config = replace(tiny, select="random", loss="kd_clc", epochs=1, **{f"clc_{name}": value for name, value in settings.items()})
    train(config, say=quiet)
    assert made and all(options == settings for options in made)
    row = metrics(config)[0]
    assert row["mean_evs"] == row["mean_res"] == "" and float(row["clc_ratio"]) > 0


def test_select_quarc_is_the_policy_alone_and_kd_has_no_ratio(tiny, monkeypatch):
    made = []
    original = QuaRCSubset.__init__
    monkeypatch.setattr(QuaRCSubset, "__init__", lambda self, *args, **options: made.append(options) or original(self, *args, **options))
    config = replace(tiny, select="quarc", loss="kd", schedule="linear", score_normalize="zscore", score_source="train", epochs=3)
    train(config, say=quiet)
    assert {(options["schedule"], options["normalize"], options["score_source"]) for options in made} == {("linear", "zscore", "train")}
    assert all(row["clc_ratio"] == "" for row in metrics(config))


def test_a_broken_run_comes_to_the_same_bits(tiny):
    config = replace(tiny, name="whole", **QUARC, clc_grad="block", clc_distribution="spatial")
    train(config, say=quiet)
    broken = replace(config, name="broken")

    def stop(line: str) -> None:
        if line.startswith("qat") and "epoch   3/4" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, say=stop)
    train(replace(broken, resume=True), say=quiet)
    states = [load_state(each.run_dir / "checkpoints/epoch_0003.pt") for each in (config, broken)]
    for part in ("model", "policy", "objective"):
        assert_same(states[0][part], states[1][part])
    assert metric_rows(config) == metric_rows(broken)


def train_here(config: TrainConfig) -> None:
    train(config, say=quiet)


def test_two_processes_keep_one_weight_and_one_model(tmp_path):
    """The trainer itself compares the weights of the processes after each epoch; parts are uneven (the last batch has 5 samples)."""
    config = replace(tiny_config(tmp_path / "two"), fraction=0.29, float_epochs=1, epochs=2, qconfig="w2a4", grad_factor="per_scale")
    config = replace(config, **QUARC, clc_grad="block", clc_block_input="student")
    ranks = Ranks(2, tmp_path / "log", train_here, config)
    assert ranks.codes() == [0, 0], ranks.output()
    assert all(float(row["clc_ratio"]) == pytest.approx(1, rel=0.6) for row in metrics(config))


def test_run_names_tell_the_settings_apart():
    def name(**settings):
        return TrainConfig(loss="kd_clc", select="quarc", **settings).run_name

    assert name() == "digits-resnet8-w2a32-quarc10-kd_clc-seed0"
    assert name(clc_ratio=0.5) == "digits-resnet8-w2a32-quarc10-kd_clc-auto0.5-seed0"
    assert name(clc_balance="fixed") == "digits-resnet8-w2a32-quarc10-kd_clc-weight100000-seed0"
    assert name(clc_balance="fixed", clc_weight=100.0, score_normalize="rank") == "digits-resnet8-w2a32-quarc-rank10-kd_clc-weight100-seed0"
    options = {"clc_layers": "fc", "clc_distribution": "flat", "clc_reduction": "rows", "clc_block_input": "student"}
    assert name(**options, clc_grad="block") == "digits-resnet8-w2a32-quarc10-kd_clc-fc-flat-rows-student-block-seed0"
    assert TrainConfig(loss="kd", clc_grad="block", select="acs", score_normalize="rank").run_name == "digits-resnet8-w2a32-acs10-kd-seed0"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"clc_weight": 0.0}, "clc_weight must be a finite number above 0; got 0.0"),
        ({"clc_ratio": math.nan}, "clc_ratio must be a finite number above 0; got nan"),
        ({"clc_weight": 10.0}, "clc_weight 10 is for clc_balance fixed; use clc_balance='fixed', or leave clc_weight out"),
        ({"clc_balance": "fixed", "clc_ratio": 0.5}, "clc_ratio 0.5 is for clc_balance auto; use clc_balance='auto', or leave"),
        ({"clc_distribution": "softmax"}, "clc_distribution must be one of channel, spatial, flat, mse; got 'softmax'"),
    ],
)
def test_settings_that_no_run_can_have(settings, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"clc_layers": "layer9.*"}, r"no layer of the student is called 'layer9.\*'; it has layer1.0, layer2.0, layer3.0"),
        ({"teacher": "resnet20"}, r"the blocks of student \(3\) and teacher \(9\) differ, first in layer1.1 of the teacher"),
        ({"clc_layers": "layer1.0=layer2.0"}, r"'layer1.0' gives \[2, 16\] in the student and 'layer2.0' \[2, 32\] in the teacher"),
        ({"clc_layers": "fc", "clc_distribution": "spatial"}, "without positions for 'spatial'"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused_before_the_float_model_is_trained(tiny, settings, message):
    with pytest.raises(InputError, match=message):
        train(replace(tiny, loss="kd_clc", **settings), say=quiet)
    assert not tiny.run_dir.exists()


def test_pairs_of_layers_with_a_teacher_of_another_architecture(tiny):
    pairs = "layer1.0=layer1.2, layer3.0=layer3.2"
    config = replace(tiny, loss="kd_clc", teacher="resnet20", clc_layers=pairs, float_epochs=0, epochs=1)
    train(config, say=quiet)
    assert float(metrics(config)[0]["clc_ratio"]) == pytest.approx(1, rel=0.7)


def test_loss_weights_of_the_selection_count_in_the_correction(tiny, monkeypatch):
    seen = []
    original = CascadedCorrection.__call__

    def recording(self, x, *, weights=None, **options):
        seen.append(weights)
        return original(self, x, weights=weights, **options)

    monkeypatch.setattr(CascadedCorrection, "__call__", recording)
    config = replace(tiny, loss="kd_clc", select="infobatch", score="loss", fraction=0.8, interval=1, epochs=2)
    train(config, say=quiet)
    weights = torch.cat([each for each in seen if each is not None])
    assert weights.unique().numel() > 1 and all(float(row["clc_ratio"]) == pytest.approx(1, rel=0.6) for row in metrics(config))


def test_a_correction_beside_which_distillation_vanishes(tiny):
    """Of 1e9 in fp32 nothing is left of L_KD: the ratio is that of the two sums, not of a difference."""
    options = {"clc_distribution": "mse", "clc_reduction": "rows", "clc_balance": "fixed", "clc_weight": 1e6}
    config = replace(tiny, loss="kd_clc", select="random", epochs=1, lr=0.0, **options)
    train(config, say=quiet)
    row = metrics(config)[0]
    kd = float(row["train_loss"]) / float(row["clc_ratio"])
    assert float(row["train_loss"]) > 1e8 and 0.1 < kd < 10


def test_a_distillation_loss_of_zero_has_no_ratio():
    tally = _Tally(None)
    tally.add(torch.tensor(2.0), torch.zeros(3, 4), torch.zeros(3).long(), parts=(torch.tensor(0.0), torch.tensor(2.0)))
    assert tally.result().clc_ratio is None


def test_a_run_without_correction_goes_on_whatever_the_defaults_of_the_correction_are(tiny):
    config = replace(tiny, epochs=1)
    train(config, say=quiet)
    path = config.run_dir / "config.yaml"
    path.write_text(path.read_text().replace("clc_balance: auto", "clc_balance: fixed"))
    train(replace(config, resume=True), say=quiet)
    path.write_text(path.read_text().replace("loss: ce", "loss: kd_clc"))
    with pytest.raises(CheckpointError, match="clc_balance fixed .now auto."):
        train(replace(config, resume=True, loss="kd_clc"), say=quiet)


def test_amp_trains(tiny):
    config = replace(tiny, **QUARC, amp=True, epochs=1, float_epochs=0)
    train(config, say=quiet)
    state = load_state(config.run_dir / "checkpoints/epoch_0000.pt")
    assert math.isfinite(float(metrics(config)[0]["train_loss"])) and state["objective"]["means"].isfinite().all()
