"""Scores of a finished run: which samples, in which order, by which models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastqat._errors import CheckpointError, InputError
from fastqat.train.run import train
from fastqat.train.score import score_run


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
