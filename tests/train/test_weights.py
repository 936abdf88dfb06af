"""Selectors and their loss weights in the trainer: the loss, whole runs, settings, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from fastqat._errors import InputError
from fastqat.cli import main
from fastqat.selection import ScoredSubset, list_selectors
from fastqat.train.batches import TrainBatch
from fastqat.train.checkpoint import load_state
from fastqat.train.config import TrainConfig
from fastqat.train.engine import Objective, train_epoch
from fastqat.train.run import train


def quiet(line: str) -> None:
    """Swallow the log."""


def test_the_loss_without_weights_has_the_bits_of_cross_entropy():
    logits, y = torch.randn(7, 5), torch.randint(0, 5, (7,))
    taught = torch.randn(7, 5)
    assert torch.equal(Objective()(logits, y), F.cross_entropy(logits, y))
    teacher = nn.Linear(5, 5).train()
    distil = Objective(teacher, distil=True)
    assert not teacher.training and not distil.teach(logits).requires_grad
    assert torch.equal(distil(logits, y, taught), F.cross_entropy(logits, taught.softmax(1)))


def test_the_loss_with_weights_is_the_mean_of_weight_times_loss():
    logits, y, taught = torch.randn(7, 5).double(), torch.randint(0, 5, (7,)), torch.randn(7, 5).double()
    weights = torch.rand(7).double() * 3
    loss = sum(float(w * F.cross_entropy(row[None], label[None])) for w, row, label in zip(weights, logits, y, strict=True)) / 7
    assert float(Objective()(logits, y, None, weights)) == pytest.approx(loss)
    soft = sum(float(w * -(t.softmax(0) * row.log_softmax(0)).sum()) for w, row, t in zip(weights, logits, taught, strict=True)) / 7
    assert float(Objective(nn.Identity(), distil=True)(logits, y, taught, weights)) == pytest.approx(soft)


class NoBar:
    def advance(self, samples):
        """Nothing to show."""


def test_an_epoch_follows_the_weights_of_the_selection():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)
    torch.manual_seed(0)
    model, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    twin.load_state_dict(model.state_dict())
    policy = ScoredSubset(TensorDataset(x, y), model, score="loss", method="importance", fraction=0.5, progress=False)
    policy.begin_epoch(0)
    order = policy.sampler.order()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = [TrainBatch(x[part], y[part], part) for part in order.split(10)]
    train_epoch(model, batches, Objective(), optimizer, lambda step: None, policy, amp=False, channels_last=False, bar=NoBar())
    weight = dict(zip(policy.selection.indices.tolist(), policy.selection.weights, strict=True))
    assert len(set(policy.selection.weights.tolist())) > 10
    for part in order.split(10):
        losses = F.cross_entropy(twin(x[part]), y[part], reduction="none")
        loss = (losses * torch.stack([weight[int(i)] for i in part])).mean()
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


RUNS = {
    "weights": {"select": "importance", "score": "grand_last", "fraction": 0.2},
    "options, static": {"select": "stratified", "select_options": '{"strata": 5, "beta": 0.2}', "interval": None},
    "the teacher, without labels' balance": {"select": "proportional", "score": "ds", "balanced": False, "loss": "kd", "interval": 1},
    "infobatch": {"select": "infobatch", "score": "loss", "fraction": 0.9, "interval": 1, "select_warmup": 1, "select_anneal": 1,
                  "score_source": "train", "score_max_age": None},
    "features": {"select": "k_center", "features": "embedding", "fraction": 0.1},
    "gradients against validation": {"select": "glister", "features": "error", "fraction": 0.1},
    "a recorded training": {"select": "topk", "score": "forgetting", "score_source": "train", "select_warmup": 2, "interval": None},
}  # fmt: skip
RUNS = {name: settings for name, settings in RUNS.items() if settings["select"] in list_selectors()}


@pytest.mark.parametrize("name", RUNS)
def test_runs_go_from_end_to_end_and_a_broken_one_comes_to_the_same_bits(name, tiny):
    config = replace(tiny, name="whole", **RUNS[name])
    summary = train(config, say=quiet)
    assert np.isfinite(summary["test_accuracy"]) and summary["select"] == config.select
    first = np.load(config.run_dir / f"selections/epoch_{config.select_warmup:04d}.npz")
    chosen = first["indices"]
    assert len(set(chosen.tolist())) == len(chosen) and any(key.startswith("score_") for key in first)
    broken = replace(config, name="broken")

    def stop(line: str) -> None:
        if line.startswith("qat") and f"epoch {3:>3}/4" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, say=stop)
    resumed = train(replace(broken, resume=True), say=quiet)
    timeless = [{key: value for key, value in each.items() if "seconds" not in key} for each in (summary, resumed)]
    assert timeless[0] == timeless[1]
    states = [load_state(each.run_dir / "checkpoints/epoch_0003.pt") for each in (config, broken)]
    assert all(torch.equal(value, states[1]["model"][key]) for key, value in states[0]["model"].items())


def test_settings_of_selections(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("select: stratified\nselect_options: {strata: 20, beta: 0.1}\ninterval: null\nscore_max_age: null\n")
    config = TrainConfig.from_yaml(path)
    assert config.selector_options == {"strata": 20, "beta": 0.1} and config.interval is None and config.score_max_age is None
    assert (
        config == replace(config, select_options="{beta: 0.1, strata: 20}") == replace(config, select_options='{"beta": 0.1,"strata":20}')
    )
    path.write_text(config.to_yaml())
    assert TrainConfig.from_yaml(path) == config
    assert config.run_name.startswith("digits-resnet8-w2a32-stratified-evs-static10-ce-seed0-")  # options are told by a hash
    changes = ({}, {"score": "loss"}, {"score_source": "train"}, {"interval": 10}, {"select": "topk"}, {"select": "acs"},
               {"select": "random"}, {"select": "pmf", "features": "layer1.conv"}, {"select": "topk", "interval": 5})  # fmt: skip
    names = {replace(config, **change).run_name for change in changes}
    assert len(names) == len(changes) and not any("." in name for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [("select_options: [1]", "must be a mapping of options"), ("select_options: 'strata'", "must be a mapping"),
     ("select_options: '{'", "must be a mapping"), ("select_options: {1: 2}", "must be a mapping"),
     ("score: best", "score must be one of acs, "),
     ("score: misses", "score must be one of acs, .*got 'misses'"), ("score_source: memory", "score_source must be one of pass, train"),
     ("select: k_centre", "select must be one of none, random, rs2, acs, quarc, bottomk")],
)  # fmt: skip
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        TrainConfig.from_yaml(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


BAD = {
    "no features": ({"select": "k_center"}, "k_center compares samples by their features; pass features='embedding'"),
    "features of nothing": ({"select": "k_center", "features": "fc9"}, "features must be embedding, .*got 'fc9'"),
    "features for none": ({"select": "pmf", "features": "embedding"}, "pmf does not look at features"),
    "unknown option": ({"select": "pmf", "select_options": '{"strata": 3}'}, "pmf does not take strata"),
    "option out of range": ({"select": "stratified", "select_options": '{"beta": 0.9}'}, "beta 0.9 leaves"),
    "options for none": ({"select": "rs2", "select_options": '{"seed": 3}'}, "rs2 looks at no scores or features"),
    "no validation": ({"select": "glister", "features": "error", "val_fraction": 0.0}, "set val_fraction above 0"),
    "a score that training does not give": ({"select": "topk", "score": "grand_last", "score_source": "train"}, "use score_source='pass'"),
    "a score of a training": ({"select": "topk", "score": "aum"}, "of a whole training; use score_source='train'"),
    "no epoch left": ({"select": "topk", "select_warmup": 3, "select_anneal": 1}, "leave none of 4 epochs for a selection"),
    "a fraction that leaves a class empty": ({"select": "middle", "fraction": 0.001}, "leaves class"),
    "a score of which small is best": ({"select": "importance", "score": "margin"}, "of margin small ones are; use evs"),
    "glister on embeddings": ({"select": "glister", "features": "embedding"}, "understands features='gradient' or features='error'"),
    "negative warm-up": ({"select_warmup": -1}, "select_warmup must be at least 0"),
}
BAD = {name: case for name, case in BAD.items() if case[0].get("select", "none") in (*list_selectors(), "none")}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_before_anything_is_written(tiny, case):
    change, message = BAD[case]
    with pytest.raises(InputError, match=message) as raised:
        train(replace(tiny, **change), say=quiet)
    assert "\n" not in str(raised.value) and not tiny.run_dir.exists()


def test_the_command_line(tiny, capsys):
    flags = [
        "--limit",
        "150",
        "--float-epochs",
        "0",
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--no-report",
        "--no-progress",
        "--threads",
        "1",
    ]
    flags += ["--runs", str(tiny.runs), "--select", "stratified", "--select-options", '{"strata": 4}', "--score", "loss"]
    flags += ["--score-source", "train", "--interval", "1", "--score-max-age", "None", "--fraction", "0.3"]
    assert main(["train", *flags]) == 0, capsys.readouterr().err
    assert len(list(tiny.runs.glob("digits-resnet8-w2a32-stratified-loss-train30-ce-seed0-*/summary.json"))) == 1
    assert main(["train", *flags, "--overwrite", "--interval", "None"]) == 0
    assert len(list(tiny.runs.glob("digits-resnet8-w2a32-stratified-loss-static-train30-ce-seed0-*"))) == 1
    assert main(["train", *flags, "--select-options", "strata=4"]) == 2
    assert "select_options must be a mapping of options" in capsys.readouterr().err
    assert main(["train", *flags, "--overwrite", "--score", "aum", "--score-source", "pass"]) == 2
    assert "use --score-source train and --select-warmup 2 or more" in capsys.readouterr().err
