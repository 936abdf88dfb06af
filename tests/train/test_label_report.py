"""What a run says of its labels: the recorded float training, cross-validated scores, and the bound on reweighting."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastqat._errors import InputError
from fastqat.cli import main
from fastqat.selection import ScoreTable, find_label_issues
from fastqat.selection.reweighting import reweighting_bound
from fastqat.train.report import write_report
from fastqat.train.run import train
from fastqat.train.score import score_folds


def quiet(line: str) -> None:
    """Swallow the log."""


@pytest.fixture
def noisy(tiny, tmp_path):
    """Digits of which the first twenty have the next class as their label, in an .npz; a float model that learns, one epoch of QAT."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.images * 15).astype(np.uint8), digits.target.astype(np.int64)
    y[:20] = (y[:20] + 1) % 10
    path = tmp_path / "noisy.npz"
    np.savez(path, x_train=x[:600], y_train=y[:600], x_test=x[600:700], y_test=y[600:700])
    settings = {"data": f"npz:{path}", "limit": None, "val_fraction": 0.0, "float_epochs": 6, "epochs": 1, "runs": tmp_path / "runs"}
    return replace(tiny, **settings)


def test_the_float_training_is_recorded_and_its_doubts_are_shown(noisy):
    train(replace(noisy, report=True), say=quiet)
    table = ScoreTable.load(noisy.run_dir / "dynamics.npz")
    assert table.num_samples == 600 and {"aum", "forgetting", "el2n", "suggested"} <= set(table)
    issues = find_label_issues(table, method="aum")
    assert len(set(issues.indices[:30].tolist()) & set(range(20))) >= 12  # chance finds one
    with np.load(noisy.run_dir / "label_issues.npz") as arrays:
        assert arrays["index"].tolist() == issues.indices.tolist() and str(arrays["method"]) == "aum"
        assert arrays["x"].shape == (min(48, len(issues.indices)), 8, 8, 1) and arrays["x"].dtype == np.uint8
    pytest.importorskip("matplotlib")
    assert (noisy.run_dir / "figures/labels.png").is_file()
    assert "probably wrong" in write_report(noisy.run_dir).read_text()


def test_a_second_run_and_a_resumed_one_have_the_same_recording(noisy, monkeypatch):
    train(noisy, say=quiet)
    whole = ScoreTable.load(noisy.run_dir / "dynamics.npz")
    other = replace(noisy, name="other")
    train(other, say=quiet)  # the float weights of the cache
    elsewhere = replace(noisy, runs=noisy.runs / "elsewhere")

    def killed(line: str) -> None:
        if "float epoch   3" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(elsewhere, say=killed)
    train(replace(elsewhere, resume=True), say=quiet)
    for run in (other, elsewhere):
        again = ScoreTable.load(run.run_dir / "dynamics.npz")
        assert all(torch.equal(again[name], whole[name]) for name in whole), run.run_dir


def test_folds_score_every_sample_by_a_model_that_has_not_seen_it(noisy):
    train(noisy, say=quiet)
    told: list[str] = []
    table = score_folds(noisy.run_dir, 3, progress=False, say=told.append)
    assert set(table) == {"evs", "loss", "margin"} and table.features.shape == (600, 10)
    assert len([line for line in told if line.startswith("fold ")]) == 3
    issues = find_label_issues(table, method="confident")
    assert len(set(issues.indices.tolist()) & set(range(20))) >= 12
    with np.load(noisy.run_dir / "label_issues.npz") as arrays:
        assert arrays["index"].tolist() == issues.indices.tolist() and str(arrays["method"]) == "confident"
    told.clear()
    again = score_folds(noisy.run_dir, 3, progress=False, say=told.append)
    assert torch.equal(again.features, table.features) and not any("float epoch" in line for line in told)  # nothing is trained twice


def test_the_command_saves_the_folds_and_lists_the_suspects(noisy, capsys):
    train(noisy, say=quiet)
    assert main(["score", str(noisy.run_dir), "--folds", "2", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "labels are suspicious" in out and "probability of the label" in out
    assert ScoreTable.load(noisy.run_dir / "scores_pool_folds2.npz").features.shape == (600, 10)
    assert main(["score", str(noisy.run_dir), "--folds", "2", "--features", "embedding", "--split", "test"]) == 2
    assert "leave out --features, --split" in capsys.readouterr().err
    assert main(["score", str(noisy.run_dir), "--folds", "1"]) == 2
    assert "folds must be a whole number ≥ 2; got 1" in capsys.readouterr().err


def test_the_command_keeps_features_and_the_teachers_logits(tiny, tmp_path, capsys):
    train(tiny, say=quiet)
    flags = ["--scores", "evs", "ds", "grand", "--features", "embedding", "--teacher-cache", str(tmp_path / "teacher.safetensors")]
    assert main(["score", str(tiny.run_dir), *flags, "--output", str(tmp_path / "a.npz")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"rho = [01]\.\d+ \(grand\)", out) and (tmp_path / "teacher.safetensors").is_file()
    assert main(["score", str(tiny.run_dir), *flags, "--output", str(tmp_path / "b.safetensors")]) == 0
    first, second = ScoreTable.load(tmp_path / "a.npz"), ScoreTable.load(tmp_path / "b.safetensors")
    assert torch.equal(first.features, second.features) and all(torch.equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    assert main(["score", str(tiny.run_dir), "--output", str(tmp_path / "c.csv")]) == 2
    told = capsys.readouterr()
    assert ".npz, .parquet" in told.err and not told.out  # refused before anything is scored


def test_training_tells_what_reweighting_could_gain(tiny):
    told: list[str] = []
    train(tiny, say=told.append)
    assert len([line for line in told if re.match(r"rho = [01]\.\d+ \(gradient norms of \d+ samples\)", line)]) == 1


def test_the_bound_is_what_the_best_draw_reaches():
    norms = torch.rand(1000, generator=torch.Generator().manual_seed(0)).double() ** 3
    uniform = norms.square().mean()
    p = norms / norms.sum()
    best = (norms.square() / (1000**2 * p)).sum()
    assert reweighting_bound(norms) == pytest.approx(float(best / uniform), rel=1e-12)
    other = (norms.square() / (1000**2 * norms.sqrt() * (1 / norms.sqrt().sum()))).sum()
    assert other > best
    assert reweighting_bound(norms * 1e-200) == pytest.approx(reweighting_bound(norms), rel=1e-9)
    assert reweighting_bound(torch.zeros(3)) == 1.0
    for bad in (torch.tensor([1.0, -1.0]), torch.tensor([torch.nan]), torch.zeros(0)):
        with pytest.raises(InputError, match="finite number ≥ 0"):
            reweighting_bound(bad)
