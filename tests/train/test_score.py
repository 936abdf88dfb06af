"""Scores of a finished run: which samples, in which order, by which models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastqat._errors import CheckpointError, InputError
from fastqat.cli import main
from fastqat.selection import ScoreTable
from fastqat.selection.scoring import checkpoint, scoring_pass
from fastqat.train.run import train
from fastqat.train.score import score_folds, score_run


def quiet(line: str) -> None:
    """Swallow the log."""


def test_the_pool_is_what_selections_index(tiny):
    train(replace(tiny, epochs=1), say=quiet)
    table = score_run(tiny.run_dir, ("evs",), progress=False)
    with np.load(tiny.run_dir / "selections/epoch_0000.npz") as selection:
        assert np.array_equal(table.labels.numpy(), selection["labels"])
    sizes = {split: score_run(tiny.run_dir, ("evs",), split=split, progress=False).num_samples for split in ("train", "test")}
    assert sizes == {"train": 1438, "test": 359}
    with pytest.raises(InputError, match="unknown split 'val'; choose one of pool, train, test"):
        score_run(tiny.run_dir, split="val")


def test_without_quantization_student_and_teacher_are_two_models(tiny):
    train(replace(tiny, qconfig="none", select="none", epochs=2, lr=0.1), say=quiet)
    table = score_run(tiny.run_dir, ("evs", "ds"), progress=False)
    assert float(table["ds"].max()) > 1e-4
    first = score_run(tiny.run_dir, ("ds",), checkpoint=tiny.run_dir / "checkpoints/epoch_0000.pt", progress=False)
    assert not torch.equal(
        first["ds"], score_run(tiny.run_dir, ("ds",), checkpoint=tiny.run_dir / "checkpoints/epoch_0001.pt", progress=False)["ds"]
    )


def test_a_pool_that_has_changed_is_refused(tiny, tmp_path):
    x, y = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    path = tmp_path / "x.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    train(replace(tiny, data=f"npz:{path}", limit=None, epochs=1, select="none"), say=quiet)
    np.savez(path, x_train=x[::-1], y_train=y[::-1], x_test=x, y_test=y)
    with pytest.raises(CheckpointError, match="tiny was trained on other data"):
        score_run(tiny.run_dir, ("evs",), progress=False)


def test_scores_of_the_float_training_come_from_its_recording(tiny):
    train(replace(tiny, epochs=1), say=quiet)
    recorded = ScoreTable.load(tiny.run_dir / "dynamics.npz")
    alone = score_run(tiny.run_dir, ("forgetting",), progress=False)
    assert list(alone) == ["forgetting"] and torch.equal(alone.labels, recorded.labels)
    both = score_run(tiny.run_dir, ("evs", "aum"), features="error", progress=False)
    assert torch.equal(both["aum"], recorded["aum"]) and both.features.shape[0] == len(both["evs"])
    only = score_run(tiny.run_dir, ("aum",), features="error", progress=False)
    assert list(only) == ["aum"] and torch.equal(only.features, both.features)
    with pytest.raises(InputError, match="aum: scores of a whole training; .* its own pool, not of test"):
        score_run(tiny.run_dir, ("aum",), split="test")
    with pytest.raises(InputError, match="has no misses; it has .*feed a DynamicsRecorder"):
        score_run(tiny.run_dir, ("misses",))
    recorded_file = tiny.run_dir / "dynamics.npz"
    recorded_file.unlink()
    with pytest.raises(InputError, match="has no dynamics.npz: its float weights came from a file"):
        score_run(tiny.run_dir, ("aum",))


def test_folds_refuse_what_they_cannot_give_before_training(tiny):
    for name, message in (("ds", "compares with a teacher, and the float models of folds have none"), ("aum", "is of a whole training")):
        with pytest.raises(InputError, match=message):
            score_folds(tiny.run_dir, 2, (name,), say=pytest.fail)


def test_a_killed_command_goes_on_where_it_was(tiny, monkeypatch, capsys):
    train(replace(tiny, epochs=1, batch_size=64), say=quiet)
    command = ["score", str(tiny.run_dir), "--split", "train", "--no-progress"]
    assert main(command) == 0
    whole = ScoreTable.load(tiny.run_dir / "scores_train.npz")
    progress = tiny.run_dir / "scores_train.npz.progress"
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0)
    add, added = scoring_pass.ScoringPass.add, []

    def killed(self, batch):
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(batch)
        return add(self, batch)

    monkeypatch.setattr(scoring_pass.ScoringPass, "add", killed)
    assert main(command) == 130 and progress.is_file()
    added[:] = [None] * 4
    assert main(command) == 0 and not progress.exists()
    assert len(added) - 4 == -(-whole.num_samples // 128) - 3, "only the batches that were left"
    again = ScoreTable.load(tiny.run_dir / "scores_train.npz")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    capsys.readouterr()
    assert main([*command, "--features", "scale_grads", "--max-gib", "1e-6"]) == 2
    assert "raise it, or choose smaller features" in capsys.readouterr().err
    assert main([*command, "--max-gib", "0"]) == 2
    assert "max_gib must be a positive number of GiB; got 0" in capsys.readouterr().err
