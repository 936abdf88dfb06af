"""Rows of finished runs, read from their folders alone."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fastqat._errors import DataError
from fastqat._files import write_csv
from fastqat.train.config import TrainConfig
from fastqat.train.run import train
from fastqat.train.study_rows import StudyRows, differing, write_rows
from tests.train.conftest import tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run called ``acs-seed0``."""
    config = replace(tiny_config(tmp_path_factory.mktemp("study")), name="acs-seed0", float_epochs=1, epochs=3, val_interval=2)
    train(config, say=lambda line: None)
    return config.run_dir


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_row_has_settings_results_costs_and_place(run, tmp_path):
    rows = StudyRows("s", ("select", "fraction", "bn_reestimate"))
    assert rows.add(run)["cell"] == "acs"
    path = rows.save(tmp_path / "out")
    summary = json.loads((run / "summary.json").read_text())
    (row,) = read(path)
    assert list(row)[:6] == ["study", "cell", "select", "fraction", "bn_reestimate", "seed"]
    assert (row["study"], row["select"], row["bn_reestimate"], row["float_seed"]) == ("s", "acs", "0", "0")
    for name in ("test_accuracy", "best_test_accuracy", "float_accuracy", "val_accuracy", "seconds", "selection_seconds", "fraction"):
        assert float(row[name]) == pytest.approx(summary[name], rel=1e-5), name
    for name in ("gradient_steps", "scoring_forwards", "unique_samples", "commit", "torch", "device", "cpu", "threads", "jobs"):
        assert row[name] == str(summary[name] or ""), name
    assert row["noisy_selected"] == row["noisy_selected_mean"] == ""


def test_the_float_weights_have_a_name(run):
    """Runs of versions that did not write it get it from their checkpoint."""
    summary = json.loads((run / "summary.json").read_text())
    name = summary.pop("float_model")
    (run / "summary.json").write_text(json.dumps(summary))
    assert StudyRows("s", ()).add(run)["float_model"] == name and len(name) == 8
    (run / "checkpoints/float.pt").write_bytes(b"damaged")
    assert StudyRows("s", ()).add(run)["float_model"] is None
    (run / "checkpoints/float.pt").unlink()
    assert StudyRows("s", ()).add(run)["float_model"] is None


def test_what_was_logged_does_not_hide_a_setting_of_that_name(run, tmp_path):
    metrics = [row | {"clc_ratio": "0.25"} for row in read(run / "metrics.csv")]
    write_csv(run / "metrics.csv", list(metrics[0]), metrics)
    rows = StudyRows("s", ("clc_ratio",))
    rows.add(run)
    (row,) = read(rows.save(tmp_path))
    assert (row["clc_ratio"], row["clc_to_kd"], row["clc_to_kd_mean"]) == ("1", "0.25", "0.25")


def test_the_curve_has_the_validated_epochs_of_qat(run, tmp_path):
    rows = StudyRows("s", ())
    rows.add(run)
    curve = read(rows.save(tmp_path).with_name("study_s_curve.csv"))
    logged = [row for row in read(run / "metrics.csv") if row["stage"] == "qat"]
    assert [row["epoch"] for row in curve] == ["1", "2"] and {row["seed"] for row in curve} == {"0"}
    assert all(row[name] == logged[int(row["epoch"])][name] for row in curve for name in ("val_accuracy", "val_loss", "seconds", "steps"))


def test_logged_shares_are_told_by_their_last_value_and_mean(run, tmp_path):
    metrics = read(run / "metrics.csv")
    with (run / "metrics.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, dict.fromkeys([*metrics[0], "noisy_selected"]), lineterminator="\n")
        writer.writeheader()
        shares = iter(("0.5", "", "0.25"))
        writer.writerows(row | {"noisy_selected": next(shares) if row["stage"] == "qat" else ""} for row in metrics)
    row = StudyRows("s", ()).add(run)
    assert (row["noisy_selected"], row["noisy_selected_mean"]) == (0.25, 0.375)


def test_runs_of_other_versions_have_rows(run):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    del settings["label_noise"]
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {"a_setting_to_come": 1}))
    summary = json.loads((run / "summary.json").read_text())
    del summary["cpu"]
    (run / "summary.json").write_text(json.dumps(summary))
    row = StudyRows("s", ("label_noise",)).add(run)
    assert (row["label_noise"], row["cpu"]) == (0.0, None)


def test_a_setting_without_effect_tells_no_runs_apart(finished, tmp_path):
    """The default of clc_balance changed; runs that distil without the correction stay comparable."""
    other = Path(shutil.copytree(finished, tmp_path / "old-seed0"))
    settings = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(settings | {"clc_balance": "fixed"}))
    assert "clc_balance" not in read(write_rows("s", [other, finished], tmp_path))[0]
    (other / "config.yaml").write_text(yaml.safe_dump(settings | {"clc_balance": "fixed", "loss": "kd_clc"}))
    assert [row["clc_balance"] for row in read(write_rows("s", [other, finished], tmp_path))] == ["auto", "fixed"]


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.csv"])
@pytest.mark.parametrize("content", [None, "", "]"])
def test_damaged_runs_are_refused(run, name, content):
    (run / name).unlink() if content is None else (run / name).write_text(content)
    with pytest.raises(DataError, match="is no finished run"):
        StudyRows("s", ()).add(run)


def test_rows_are_sorted_by_cell_and_seed(finished, tmp_path):
    rows = StudyRows("s", ())
    summary = json.loads((finished / "summary.json").read_text())
    for cell, seed in (("b", 2), ("a", 10), ("b", 1), ("a", 9)):
        copied = Path(shutil.copytree(finished, tmp_path / f"{cell}-seed{seed}"))
        (copied / "summary.json").write_text(json.dumps(summary | {"seed": seed}))
        rows.add(copied)
    path = rows.save(tmp_path)
    assert [(row["cell"], row["seed"]) for row in read(path)] == [("a", "9"), ("a", "10"), ("b", "1"), ("b", "2")]
    assert [row["seed"] for row in read(path.with_name("study_s_curve.csv"))] == ["9", "9", "10", "10", "1", "1", "2", "2"]


def test_settings_that_differ_between_cells_get_a_column():
    base = TrainConfig(epochs=3)
    usual = differing([("a", vars(base))])
    assert {"data", "select", "fraction", "loss"} <= set(usual) and "bn_reestimate" not in usual
    several = [replace(base, seed=seed, float_seed=seed % 2, name=f"{n}-{seed}", bn_reestimate=n) for seed in range(3) for n in (0, 20)]
    assert differing((config.name.split("-")[0], vars(config)) for config in several) == (*usual, "bn_reestimate")
    by_seed = [replace(base, seed=seed, float_checkpoint=Path(f"{seed}.pt"), threads=seed + 1) for seed in range(3)]
    assert differing(("a", vars(config)) for config in by_seed) == usual


def test_cells_that_share_no_seed_are_told_apart_too():
    a, b = TrainConfig(seed=0, lr=0.1), TrainConfig(seed=1, lr=0.2)
    assert "lr" in differing([("a", vars(a)), ("b", vars(b))]) and "lr" not in differing([("a", vars(a)), ("a", vars(b))])


def test_rows_of_runs_that_no_study_made(finished, tmp_path):
    other = Path(shutil.copytree(finished, tmp_path / "by hand"))
    settings = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(settings | {"bn_reestimate": 20}))
    path = write_rows("mine", [other, finished], tmp_path / "out")
    assert path.name == "study_mine.csv"
    assert [(row["study"], row["cell"], row["bn_reestimate"]) for row in read(path)] == [("mine", "acs", "0"), ("mine", "by hand", "20")]
    with pytest.raises(DataError, match="is no finished run"):
        write_rows("mine", [tmp_path / "nowhere"], tmp_path)
