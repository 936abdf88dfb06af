"""Settings: YAML, types, ranges, names."""

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from fastqat._errors import InputError
from fastqat.quantizers.spec import GRAD_FACTORS
from fastqat.selection.schedules import SCHEDULES
from fastqat.train.config import FLOAT_FIELDS, FREE_ON_RESUME, TrainConfig


def test_yaml_round_trip(tmp_path):
    config = TrainConfig(data="cifar10", lr=0.05, limit=7, runs=tmp_path, scale_lr=1e-4, resume=True)
    path = tmp_path / "c.yaml"
    path.write_text(config.to_yaml())
    assert TrainConfig.from_yaml(path) == config


def test_yaml_accepts_whole_and_scientific_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1\nweight_decay: 5e-4\nruns: other/place\n")
    config = TrainConfig.from_yaml(path)
    assert (config.lr, config.weight_decay, config.runs) == (1.0, 5e-4, Path("other/place"))


BAD_YAML = {
    "unknown key": ("learning_rate: 1", "unknown setting 'learning_rate'"),
    "wrong type": ("epochs: many", "epochs must be int; got 'many'"),
    "bool for int": ("epochs: true", "epochs must be int; got True"),
    "not a choice": ("loss: mse", "loss must be one of ce, kd"),
    "no selection": ("select: best", "select must be one of none, random, rs2, acs"),
    "no schedule": ("schedule: falling", "schedule must be one of cosine, half_cosine"),
    "not a mapping": ("- 1", "must hold a mapping"),
    "no yaml": ("a: [", "cannot read settings"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_yaml(tmp_path, case):
    text, message = BAD_YAML[case]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        TrainConfig.from_yaml(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"fraction": 0.0},
        {"fraction": 1.01},
        {"fraction": -0.1},
        {"val_fraction": 1.0},
        {"epochs": -1},
        {"batch_size": 1},
        {"interval": 0},
        {"lr": float("nan")},
        {"lr": -1.0},
        {"limit": 0},
        {"threads": 0},
        {"seed": -1},
        {"momentum": 1.0},
        *({"name": name} for name in ("", ".", "..", "../a", "a/b", ".float", "a\\b")),
        {"resume": True, "overwrite": True},
    ],
    ids=str,
)
def test_values_out_of_range(change):
    with pytest.raises(InputError, match=next(iter(change))):
        TrainConfig(**change)


def test_choices_are_those_of_the_library():
    hints = get_type_hints(TrainConfig)
    assert get_args(hints["schedule"]) == tuple(SCHEDULES) and get_args(hints["grad_factor"]) == GRAD_FACTORS


def test_names_tell_runs_apart():
    names = {
        TrainConfig(select=select, fraction=fraction, loss=loss, seed=seed, qconfig=qconfig).run_name
        for select in ("rs2", "acs")
        for fraction in (0.1, 0.05)
        for loss in ("ce", "kd")
        for seed in (0, 1)
        for qconfig in ("w2a32", "w4a4:channel")
    }
    assert len(names) == 32 and not any(":" in name or "/" in name for name in names)
    assert TrainConfig(data="npz:/a/b/watch.npz").run_name.startswith("watch-")


def test_every_setting_is_documented_and_lists_are_valid():
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert names >= FREE_ON_RESUME and names >= set(FLOAT_FIELDS)
