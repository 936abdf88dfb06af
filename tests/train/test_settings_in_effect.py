"""Settings that once had no effect, or another than they said, and were taken in silence."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fastqat.cli
from fastqat._errors import InputError
from fastqat.cli import main
from fastqat.train.config import TrainConfig
from fastqat.train.run import Run, train
from tests.train.conftest import tiny_config


def quiet(line: str) -> None:
    pass


def metrics(config: TrainConfig) -> list[dict[str, str]]:
    with open(config.run_dir / "metrics.csv", newline="") as handle:
        return [row for row in csv.DictReader(handle) if row["stage"] == "qat"]


def last_weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return torch.load(config.run_dir / "checkpoints" / "best.pt", weights_only=True)["model"]


@pytest.mark.parametrize("select", ["none", "random", "rs2"])
def test_statistics_are_estimated_at_the_end_whatever_selects(tiny, select):
    base = replace(tiny, select=select, interval=1, epochs=1, val_fraction=0.0, float_epochs=1, rho=False)
    plain, renewed = (replace(base, bn_reestimate=n, name=str(n)) for n in (0, 1))
    results = [train(config, say=quiet) for config in (plain, renewed)]
    assert [result["scoring_forwards"] for result in results] == [0, 128]  # one batch
    assert results[1]["selection_seconds"] > results[0]["selection_seconds"]
    before, after = last_weights(plain), last_weights(renewed)
    for name, value in before.items():
        assert torch.equal(value, after[name]) != name.endswith(("running_mean", "running_var", "num_batches_tracked")), name


def test_the_end_counts_as_selection_for_scores_too(tiny):
    config = replace(tiny, interval=None, epochs=1, float_epochs=1, bn_reestimate=1, first_select="random", select="acs", rho=False)
    result = train(config, say=quiet)
    assert result["scoring_forwards"] == 128 and result["selection_seconds"] > 0
    row = metrics(config)[-1]
    assert float(row["seconds"]) == pytest.approx(result["seconds"], rel=1e-4)
    assert float(row["selection_seconds"]) == pytest.approx(result["selection_seconds"], rel=1e-4)


@pytest.mark.parametrize("select", ["none", "random", "rs2"])
@pytest.mark.parametrize(
    "change",
    [{"first_select": "random"}, {"select_warmup": 1}, {"select_anneal": 1}, {"features": "embedding"}, {"score_source": "train"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_only_scores_look_at_is_refused_without_them(tmp_path, one_thread, select, change):
    config = replace(tiny_config(tmp_path / "runs"), select=select, limit=60, fraction=0.5, **change)
    with pytest.raises(InputError, match=f"select {select} looks at no scores .* leave out {next(iter(change))}"):
        Run(config, quiet)


def test_epochs_on_all_samples_have_no_scores(tiny):
    config = replace(tiny, interval=1, select_anneal=2, float_epochs=1, rho=False)
    train(config, say=quiet)
    rows = [(row["mean_evs"] != "", row["reselected"]) for row in metrics(config)]
    assert rows == [(True, "1"), (True, "1"), (False, "1"), (False, "0")]
    with np.load(config.run_dir / "selections/epoch_0002.npz") as arrays:
        assert not [name for name in arrays if name.startswith("score_")] and len(arrays["indices"]) == len(arrays["labels"])


def test_names_differ_where_runs_do():
    changes = [
        {}, {"first_select": "random"}, {"bn_reestimate": 20}, {"schedule": "linear"}, {"balanced": False}, {"grad_factor": "per_scale"},
        {"interval": 5}, {"select_warmup": 3}, {"augment": "none"}, {"amp": True}, {"float_seed": 3}, {"epochs": 9}, {"float_epochs": 3},
        {"label_noise": 0.1}, {"label_noise": 0.1, "float_seed": 1}, {"data": "npz:a/set.npz"}, {"data": "npz:b/set.npz"},
        *({"loss": "kd_clc", "clc_layers": layers} for layers in ("layer1.0", "layer1,0", "layer1_0")),
    ]  # fmt: skip
    names = [TrainConfig(select="acs", **change).run_name for change in changes]
    assert len(set(names)) == len(names) and names[0] == "digits-resnet8-w2a32-acs10-ce-seed0"
    assert all(name.startswith(names[0]) for name in names[1:13])
    layers = ",".join(f"features.{i}" for i in range(30))
    long = [TrainConfig(loss="kd_clc", clc_layers=f"{layers}{end}").run_name for end in ("", ",fc")]
    assert long[0] != long[1] and max(map(len, long)) < 130
    free = TrainConfig(select="acs", runs=Path("elsewhere"), threads=3, report=False, rho=False, progress=False)
    assert free.run_name == names[0]


def test_a_recipe_that_was_not_put_in_is_refused():
    for given in ({}, {"epochs": 20}, {"data": "cifar100"}):
        with pytest.raises(InputError, match=r"recipe 'acs-cifar100' is read by TrainConfig.of\(\{'recipe': ...\}\)"):
            TrainConfig(recipe="acs-cifar100", **given)
    config = TrainConfig.of({"recipe": "acs-cifar100", "epochs": 20, "batch_size": 128})
    assert replace(config, lr=0.5).data == "cifar100"


@pytest.fixture
def parsed(monkeypatch) -> list[TrainConfig]:
    """What `fastqat train` would have run."""
    seen: list[TrainConfig] = []
    monkeypatch.setitem(fastqat.cli.COMMANDS, "train", replace(fastqat.cli.COMMANDS["train"], run=seen.append))
    return seen


def test_a_run_that_is_resumed_has_its_own_settings(tmp_path, parsed, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.yaml").write_text(TrainConfig.of({"recipe": "acs-cifar100", "lr": 0.5}).to_yaml())
    resumed = ["train", "--resume", "--name", "a", "--runs", str(tmp_path)]
    assert main([*resumed, "--recipe", "quarc-cifar100"]) == 2
    assert "a has settings of its own; leave out --recipe" in capsys.readouterr().err
    assert main(resumed) == main([*resumed, "--recipe", "acs-cifar100"]) == 0
    assert parsed[0] == parsed[1] and parsed[0].lr == 0.5


@pytest.mark.parametrize("flags", [["--minutes", "5"], ["--jobs", "2"], ["--minutes", "-1"]], ids=" ".join)
def test_flags_of_a_study_without_one(tmp_path, capsys, flags):
    assert main(["train", *flags, "--runs", str(tmp_path / "runs")]) == 2
    assert f"{flags[0]} is for a study; give one with --study" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_the_recipe_of_imagenet_needs_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--recipe", "acs-imagenet"]) == 2
    assert "imagefolder:PATH needs the folders train/ and val/" in capsys.readouterr().err
