"""Recipes: the papers' settings, what overrides them, and a run of each on a tiny copy of its data set's layout."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastqat.cli
from fastqat._errors import InputError
from fastqat.cli import main
from fastqat.train.config import TrainConfig
from fastqat.train.run import train
from fastqat.train.setting_types import RECIPES
from fastqat.train.student import qconfig_of

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))

# What the papers and their released code state: arXiv 2306.07215 and 2507.17768.
STATED = {
    "acs-cifar100": {
        "data": "cifar100", "model": "mobilenet_v2_half", "qconfig": "w2a32", "quantizer": "lsq", "grad_factor": "per_scale",
        "select": "acs", "fraction": 0.1, "interval": 10, "schedule": "cosine", "balanced": True, "loss": "ce", "epochs": 200,
        "batch_size": 256, "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "scale_lr": None,
    },
    "acs-imagenet": {
        "model": "resnet18", "teacher": "resnet101", "qconfig": "w4a4", "quantizer": "lsq", "grad_factor": "per_scale", "select": "acs",
        "fraction": 0.1, "interval": 10, "schedule": "cosine", "balanced": True, "loss": "kd", "epochs": 120, "batch_size": 512,
        "optimizer": "adam", "lr": 1.25e-3, "scale_lr": None, "activation_scale_lr": 1.25e-4,
    },
    "quarc-cifar100": {
        "data": "cifar100", "model": "mobilenet_v2_half", "qconfig": "w2a32", "quantizer": "lsq_plus", "select": "quarc", "fraction": 0.01,
        "interval": 50, "schedule": "cosine", "loss": "kd_clc", "clc_layers": "blocks", "epochs": 200,
        "batch_size": 256, "optimizer": "sgd", "lr": 0.01,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_what_the_papers_state(name):
    config = TrainConfig.of({"recipe": name})
    assert {key: getattr(config, key) for key in STATED[name]} == STATED[name]
    weight = qconfig_of(config).weight
    assert weight.granularity == "tensor" and weight.signed is True and weight.symmetric


@pytest.fixture
def parsed(monkeypatch) -> list[TrainConfig]:
    """What `fastqat train` would have run."""
    seen: list[TrainConfig] = []
    monkeypatch.setitem(fastqat.cli.COMMANDS, "train", replace(fastqat.cli.COMMANDS["train"], run=seen.append))
    return seen


def test_flags_override_yaml_and_yaml_overrides_the_recipe(tmp_path, parsed):
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 30\nlr: 0.5\n")
    argv = ["train", "--config", str(path), "--recipe", "acs-cifar100", "--lr", "0.25"]
    for words in (argv, [*argv[:3], "--recipe=acs-cifar100", "--lr=0.25"]):
        assert main(words) == 0
    expected = {"epochs": 30, "lr": 0.25, "batch_size": 256, "recipe": "acs-cifar100", "config": path}
    assert parsed[0] == parsed[1] == replace(TrainConfig.of({"recipe": "acs-cifar100"}), **expected)


def test_a_recipe_in_yaml_and_another_by_flag(tmp_path, parsed):
    path = tmp_path / "c.yaml"
    path.write_text("recipe: acs-cifar100\nepochs: 30\n")
    assert TrainConfig.from_yaml(path) == replace(TrainConfig.of({"recipe": "acs-cifar100"}), epochs=30)
    assert main(["train", "--config", str(path), "--recipe", "quarc-cifar100"]) == 0
    assert parsed[0] == replace(TrainConfig.of({"recipe": "quarc-cifar100"}), epochs=30, config=path)


def test_a_run_keeps_all_settings_of_its_recipe(tmp_path):
    config = replace(TrainConfig.of({"recipe": "acs-imagenet"}), lr=0.5)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert TrainConfig.from_yaml(tmp_path / "c.yaml") == config


def test_unknown_recipes_are_refused_and_known_ones_listed(capsys):
    with pytest.raises(InputError, match="recipe must be one of acs-cifar100, acs-imagenet, quarc-cifar100; got 'acs'"):
        TrainConfig.of({"recipe": "acs"})
    assert main(["train", "--recipe", "acs"]) == 2
    assert "recipe must be one of acs-cifar100" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert all(name in capsys.readouterr().out.replace("\n", "") for name in ("acs-imagenet",))


def write_cifar100(root: Path) -> None:
    """The python files of CIFAR-100 with four classes of flat colours."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 80), ("test", 20)):
        y = np.arange(n) % 4
        x = np.clip(rng.normal(60 * y[:, None, None, None] + 30, 20, (n, 3, 32, 32)), 0, 255).astype(np.uint8)
        content = {"data": x.reshape(n, -1), "fine_labels": y.tolist(), "coarse_labels": [0] * n}
        (root / "cifar-100-python").mkdir(parents=True, exist_ok=True)
        (root / "cifar-100-python" / part).write_bytes(pickle.dumps(content, protocol=2))


def write_imagenet(root: Path) -> None:
    """ImageNet's tree, ``train/`` and ``val/`` with a folder per class, with four classes of flat colours."""
    image, rng = pytest.importorskip("PIL.Image"), np.random.default_rng(0)
    for part, each in (("train", 14), ("val", 3)):
        for label, name in enumerate(("n01440764", "n01443537", "n01484850", "n01491361")):
            (root / part / name).mkdir(parents=True)
            for i in range(each):
                x = np.clip(rng.normal(60 * label + 30, 20, (40, 36, 3)), 0, 255).astype(np.uint8)
                image.fromarray(x).save(root / part / name / f"{name}_{i}.JPEG")


SHORT = {"epochs": 1, "float_epochs": 1, "float_batch_size": 16, "batch_size": 16, "threads": 1, "report": False, "progress": False}


@pytest.mark.parametrize("name", ["acs-cifar100", "quarc-cifar100"])
def test_cifar100_recipes_run(tmp_path, one_thread, name):
    write_cifar100(tmp_path)
    values = {"recipe": name, "data_root": tmp_path, "runs": tmp_path / "runs", "fraction": 0.25, **SHORT}
    summary = train(TrainConfig.of(values), say=lambda line: None)
    assert summary["gradient_steps"] == 2 and summary["scoring_forwards"] > 0 and summary["qconfig"] == "w2a32"
    assert summary["unique_samples"] == 20  # a quarter of all 80: nothing is held out
    assert summary["quantizer"] == STATED[name]["quantizer"] and 0 <= summary["test_accuracy"] <= 1


def test_cifar100_is_learned_from_python_files_and_npz_alike(tmp_path, one_thread):
    write_cifar100(tmp_path)
    raw = {part: pickle.loads((tmp_path / "cifar-100-python" / part).read_bytes()) for part in ("train", "test")}
    arrays = {f"x_{part}": raw[part]["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for part in raw}
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz/cifar100.npz", **arrays, **{f"y_{part}": np.array(raw[part]["fine_labels"]) for part in raw})
    base = TrainConfig(data="cifar100", select="acs", fraction=0.5, interval=2, runs=tmp_path / "runs", augment="none", **SHORT)
    base = replace(base, float_epochs=4, epochs=3)
    first, second = (train(replace(base, data_root=root, name=root.name), say=lambda line: None) for root in (tmp_path, tmp_path / "npz"))
    assert first["float_accuracy"] == second["float_accuracy"] > 0.5 and first["test_accuracy"] == second["test_accuracy"]


def test_imagenet_recipe_runs(tmp_path, one_thread):
    pytest.importorskip("torchvision")
    write_imagenet(tmp_path)
    values = {"recipe": "acs-imagenet", "data": f"imagefolder:{tmp_path}", "image_size": 32, "workers": 0, "runs": tmp_path / "runs"}
    summary = train(TrainConfig.of({**values, "fraction": 0.25, "teacher": "shufflenet_v2_x0_5", **SHORT}), say=lambda line: None)
    assert (summary["teacher"], summary["gradient_steps"]) == ("shufflenet_v2_x0_5", 1) and 0 <= summary["teacher_accuracy"] <= 1


def test_imagenet_tree_is_learned_with_noisy_labels(tmp_path, one_thread):
    pytest.importorskip("torchvision")
    write_imagenet(tmp_path)
    config = TrainConfig(
        data=f"imagefolder:{tmp_path}", image_size=32, workers=0, val_fraction=0.15, label_noise=0.25, select="acs", fraction=0.5,
        interval=2, runs=tmp_path / "runs", **SHORT,
    )  # fmt: skip
    noisy = train(replace(config, float_epochs=4, epochs=3, name="a"), say=lambda line: None)
    assert 0 < noisy["noisy_selected"] < 1 and noisy["test_accuracy"] >= 0.25
    oracle = train(replace(config, float_epochs=4, epochs=1, oracle_teacher=True, name="b"), say=lambda line: None)
    assert oracle["float_accuracy"] > 0.4
    with np.load(tmp_path / "runs/a/selections/epoch_0000.npz") as arrays:
        assert arrays["wrong"].sum() == 12 and len(arrays["wrong"]) == 48
