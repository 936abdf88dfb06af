"""Resuming beside damaged, missing and changed files: what can be spared is said and left out, the rest is refused."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastqat._errors import CheckpointError
from fastqat.train.checkpoint import load_state, save_state
from fastqat.train.engine import EpochResult
from fastqat.train.folder import RunFolder
from fastqat.train.models import make_model
from fastqat.train.run import train
from fastqat.train.stage import Stage


def quiet(line: str) -> None:
    """Swallow the log."""


@pytest.mark.parametrize(
    "damage", [lambda path: os.truncate(path, 1000), Path.unlink, lambda path: save_state(path, {"epoch": 1, "model": {}})]
)
def test_damaged_best_checkpoint_does_not_block_the_end(tiny, monkeypatch, damage):
    monkeypatch.setattr(Stage, "_validate", lambda self, epoch: EpochResult(1.0, 1 / (2 + epoch), 15, 1, 0.1))
    first = train(replace(tiny, epochs=2), say=quiet)
    assert first["best_epoch"] == 0
    (tiny.run_dir / "summary.json").unlink()
    damage(tiny.run_dir / "checkpoints/best.pt")
    told: list[str] = []
    summary = train(replace(tiny, epochs=2, resume=True), say=told.append)
    (line,) = (line for line in told if "best.pt" in line)
    assert line.endswith("the last epoch counts as the best") and "\n" not in line
    assert summary["best_test_accuracy"] == summary["test_accuracy"] == first["test_accuracy"]
    assert summary["best_epoch"] == 1 and summary["val_accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("given", [False, True], ids=["float weights of the run", "float weights of the user"])
def test_changed_data_is_noticed(tiny, tmp_path, given):
    x, y = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    path = tmp_path / "x.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    torch.save(make_model("resnet8", 3, (1, 8, 8)).state_dict(), tmp_path / "mine.pt")
    config = replace(tiny, data=f"npz:{path}", limit=None, epochs=1, float_checkpoint=tmp_path / "mine.pt" if given else None)
    train(config, say=quiet)
    (config.run_dir / "summary.json").unlink()
    before = {file: file.read_bytes() for file in config.run_dir.rglob("*.pt")}
    np.savez(path, x_train=x[::-1], y_train=y[::-1], x_test=x, y_test=y)
    with pytest.raises(CheckpointError, match="was trained on other data than is there now"):
        train(replace(config, resume=True), say=quiet)
    assert {file: file.read_bytes() for file in config.run_dir.rglob("*.pt")} == before


def test_float_weights_of_the_run_outlive_another_thread_count(tiny):
    """The cache is per thread count; a run keeps the float weights that it started with."""
    train(replace(tiny, epochs=1), say=quiet)
    own = tiny.run_dir / "checkpoints/float.pt"
    before = own.read_bytes()
    (tiny.run_dir / "summary.json").unlink()
    told: list[str] = []
    train(replace(tiny, epochs=1, threads=2, resume=True), say=told.append)
    assert own.read_bytes() == before and any("float weights of this run" in line for line in told)


def test_float_weights_of_other_settings_are_replaced(tiny):
    train(replace(tiny, epochs=1), say=quiet)
    own = tiny.run_dir / "checkpoints/float.pt"
    right = load_state(own)
    save_state(own, {**right, "key": "of an older format"})
    (tiny.run_dir / "summary.json").unlink()
    told: list[str] = []
    train(replace(tiny, epochs=1, resume=True), say=told.append)
    assert load_state(own)["key"] == right["key"] and any("float weights of an earlier run" in line for line in told)


def test_damaged_summary_is_made_again(tiny):
    first = train(replace(tiny, epochs=1), say=quiet)
    (tiny.run_dir / "summary.json").write_text('{"dataset": ')
    assert train(replace(tiny, epochs=1, resume=True), say=quiet)["test_accuracy"] == first["test_accuracy"]


def test_damaged_selection_is_told_and_left_out(tmp_path):
    folder, told = RunFolder(tmp_path), []
    for epoch in range(3):
        folder.write_selection(epoch, {"indices": np.arange(1000) * 7919 % 1000})
    path = tmp_path / "selections/epoch_0001.npz"
    content = bytearray(path.read_bytes())
    content[200:210] = b"x" * 10
    path.write_bytes(content)
    assert len(folder.read_selections(told.append)) == 2
    assert len(told) == 1 and "epoch_0001.npz is damaged and left out" in told[0]
