"""Whole runs on tiny data: what is written, what is counted, which settings work, what is refused."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastqat._errors import CheckpointError, DataError, FastqatError, InputError
from fastqat.quantizers import Quantizer
from fastqat.train.checkpoint import load_state
from fastqat.train.float_stage import cache_key, float_key
from fastqat.train.folder import COLUMNS
from fastqat.train.models import make_model
from fastqat.train.run import Run, train
from fastqat.train.student import make_student, qconfig_of


def quiet(line: str) -> None:
    """Swallow the log."""


def rows(config):
    with open(config.run_dir / "metrics.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_run_directory_is_complete(tiny):
    summary = train(replace(tiny, report=True), say=quiet)
    found = {str(path.relative_to(tiny.run_dir)) for path in tiny.run_dir.rglob("*") if path.is_file()}
    checkpoints = {f"checkpoints/{name}.pt" for name in ("best", "float", "epoch_0002", "epoch_0003")}
    selections = {"selections/epoch_0000.npz", "selections/epoch_0002.npz"}
    assert found >= {"config.yaml", "metrics.csv", "summary.json", "pictures.npz", "report.html"} | checkpoints | selections
    assert {name for name in found if name.startswith("checkpoints/")} == checkpoints
    assert json.loads((tiny.run_dir / "summary.json").read_text()) == summary
    with np.load(tiny.run_dir / "pictures.npz") as pictures:
        assert pictures["x"].dtype == np.uint8 and pictures["x"].shape == (len(pictures["index"]), 8, 8, 1)


def test_metrics_count_steps_and_samples(tiny):
    summary = train(tiny, say=quiet)
    table = rows(tiny)
    assert tuple(table[0]) == COLUMNS
    assert [(row["stage"], row["epoch"]) for row in table] == [("float", "0"), ("float", "1"), *(("qat", str(e)) for e in range(4))]
    qat = table[2:]
    assert [row["reselected"] for row in qat] == ["1", "0", "1", "0"]
    selected = int(qat[0]["selected"])
    assert selected == len(np.load(tiny.run_dir / "selections/epoch_0000.npz")["indices"])
    assert [int(row["steps"]) for row in qat] == [(e + 1) * (-(-selected // 16)) for e in range(4)]
    assert summary["gradient_steps"] == int(qat[-1]["steps"])
    assert [float(row["lr"]) for row in qat] == pytest.approx([0.005 * (1 + np.cos(np.pi * e / 4)) for e in range(4)], rel=1e-4)
    assert float(qat[0]["beta"]) == 1.0 and all(0 <= float(row["val_accuracy"]) <= 1 for row in table)
    pool = len(np.load(tiny.run_dir / "selections/epoch_0000.npz")["labels"])
    assert summary["scoring_forwards"] == 3 * pool and selected <= summary["unique_samples"] <= 2 * selected


@pytest.mark.parametrize(
    "change",
    [
        {"select": "none"},
        {"select": "random", "qconfig": "w4a4", "loss": "kd"},
        {"select": "rs2", "optimizer": "adam", "lr": 1e-3, "qconfig": "w4a4:channel"},
        {"select": "acs", "first_select": "random", "bn_reestimate": 2, "loss": "kd", "schedule": "linear"},
        {"select": "acs", "amp": True, "balanced": False, "grad_factor": "per_scale"},
        {"qconfig": "none", "epochs": 0},
        {"val_fraction": 0.0, "channels_last": False, "augment": "none", "val_interval": 3},
    ],
    ids=lambda change: " ".join(f"{key}={value}" for key, value in change.items()),
)
def test_settings_work_and_repeat(tiny, change):
    config = replace(tiny, **{"epochs": 2} | change)
    first = train(config, say=quiet)
    second = train(replace(config, name="again"), say=quiet)
    timeless = [{k: v for k, v in s.items() if "seconds" not in k} for s in (first, second)]
    assert timeless[0] == timeless[1]
    assert np.isfinite(first["test_accuracy"]) and (first["val_accuracy"] is None) == (config.val_fraction == 0 or config.epochs == 0)


def test_float_model_is_trained_once_and_shared(tiny):
    told: list[str] = []
    train(replace(tiny, epochs=1), say=quiet)
    train(replace(tiny, name="second", select="rs2", lr=0.5, epochs=1, loss="kd"), say=told.append)
    assert any("float weights of an earlier run" in line for line in told) and not any(line.startswith("float epoch") for line in told)
    assert rows(replace(tiny, name="second"))[:2] == rows(tiny)[:2]
    told.clear()
    train(replace(tiny, name="third", seed=1, epochs=0), say=told.append)
    assert any(line.startswith("float epoch") for line in told)


def test_float_weights_are_shared_on_equal_machines_only(tiny, monkeypatch):
    data = Run(tiny, quiet).data
    key, cpu = float_key(tiny, data), torch.device("cpu")
    keys = [cache_key(key, cpu)]
    for target, value in (("get_num_threads", 77), ("__version__", "0"), ("backends.cpu.get_cpu_capability", "none")):
        with monkeypatch.context() as patch:
            patch.setattr(f"torch.{target}", value if target == "__version__" else lambda value=value: value)
            keys.append(cache_key(key, cpu))
    assert len(set(keys)) == 4 and key == float_key(replace(tiny, threads=2, name="b", qconfig="w4a4"), data)


def test_limit_takes_the_same_share_of_each_class(tiny, tmp_path):
    """The samples lie class by class, as in a folder of pictures."""
    x, y = np.zeros((60, 8, 8), np.uint8), np.arange(60) // 20
    np.savez(tmp_path / "sorted.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = Run(replace(tiny, data=f"npz:{tmp_path / 'sorted.npz'}", limit=15, val_fraction=0.2), quiet).data
    assert torch.bincount(data.labels).tolist() == [4, 4, 4] and torch.bincount(data.val.y).tolist() == [1, 1, 1]


@pytest.mark.parametrize("grad_factor", ["paper", "per_scale", "range", "none"])
def test_grad_factor_reaches_the_quantizers(tiny, grad_factor):
    config = replace(tiny, qconfig="w4a8:channel", grad_factor=grad_factor)
    qconfig = qconfig_of(config)
    assert (qconfig.weight.bits, qconfig.weight.granularity, qconfig.activation.bits) == (4, "channel", 8)
    model = make_student(config, make_model("resnet8", 10, (1, 8, 8)))
    assert {m.spec.grad_factor for m in model.modules() if isinstance(m, Quantizer)} == {grad_factor}


def test_damaged_float_cache_is_said_and_trained_again(tiny):
    train(replace(tiny, epochs=0), say=quiet)
    (cached,) = (tiny.runs / ".float").glob("*.pt")
    whole = load_state(cached)["model"]
    cached.write_bytes(cached.read_bytes()[:100])
    told: list[str] = []
    train(replace(tiny, name="second", epochs=0), say=told.append)
    assert any("not used" in line for line in told)
    (cached,) = (tiny.runs / ".float").glob("*.pt")
    assert all(torch.equal(whole[name], value) for name, value in load_state(cached)["model"].items())


def test_float_checkpoint_of_a_user(tiny, tmp_path):
    train(replace(tiny, epochs=0), say=quiet)
    weights = load_state(tiny.run_dir / "checkpoints/float.pt")["model"]
    torch.save(weights, tmp_path / "mine.pt")
    config = replace(tiny, name="mine", float_checkpoint=tmp_path / "mine.pt", epochs=1)
    train(config, say=quiet)
    assert [row["stage"] for row in rows(config)] == ["qat"]
    other = replace(config, name="other", model="resnet20")
    with pytest.raises(CheckpointError, match=r"mine\.pt is of another architecture"):
        train(other, say=quiet)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        train(replace(other, float_checkpoint=tmp_path / "none.pt"), say=quiet)
    assert not other.run_dir.exists()


def test_validation_is_held_out_and_the_same_for_every_seed(tiny):
    first, second = Run(replace(tiny, limit=None), quiet), Run(replace(tiny, limit=None, seed=1, name="b"), quiet)
    assert torch.equal(first.data.val.x, second.data.val.x)
    assert len(first.data.pool) + len(first.data.val) == 1438
    sizes = torch.bincount(torch.cat([first.data.val.y, first.data.labels])).tolist()
    assert torch.bincount(first.data.val.y).tolist() == [round(0.1 * n) for n in sizes]


def test_without_matplotlib_the_run_ends_and_says_so(tiny, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib" or name.startswith("fastqat.train.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told: list[str] = []
    summary = train(replace(tiny, report=True, epochs=1), say=told.append)
    assert summary["test_accuracy"] > 0 and (tiny.run_dir / "summary.json").is_file()
    assert any("matplotlib" in line for line in told)


def test_existing_run_is_kept_unless_told(tiny):
    train(replace(tiny, epochs=0), say=quiet)
    with pytest.raises(InputError, match="continue it with --resume, replace it with --overwrite"):
        train(tiny, say=quiet)
    assert train(replace(tiny, overwrite=True, epochs=1), say=quiet)["epochs"] == 1


BAD = {
    "fraction leaves a class empty": ({"fraction": 0.001}, InputError, "leaves class 0"),
    "unknown policy": ({"select": "best"}, InputError, "select must be one of none, random, rs2, acs"),
    "unknown schedule": ({"schedule": "falling"}, InputError, "schedule must be one of cosine, half_cosine"),
    "unknown model": ({"model": "resnet9000"}, InputError, "resnet8"),
    "unknown bits": ({"qconfig": "w2"}, InputError, "w2"),
    "unknown data": ({"data": "nothing"}, DataError, "unknown data set"),
    "device": ({"device": "cuda:77"}, InputError, "cannot be used"),
    "too little data": ({"limit": 1}, DataError, "samples left to train on"),
    "diverged": ({"float_lr": 1e30}, FastqatError, "training diverged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_one_line(tiny, case):
    change, kind, message = BAD[case]
    with pytest.raises(kind, match=message) as raised:
        train(replace(tiny, **change), say=quiet)
    assert "\n" not in str(raised.value)
    assert case == "diverged" or not tiny.run_dir.exists()
