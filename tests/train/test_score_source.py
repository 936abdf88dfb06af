"""Scores from the training forward in the trainer: what is observed, what it costs, resumption, two processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastqat.selection import ScoredSubset
from fastqat.train.checkpoint import load_state
from fastqat.train.config import TrainConfig
from fastqat.train.run import train
from tests.processes import Ranks

from .conftest import tiny_config
from .test_resume import assert_same


def quiet(line: str) -> None:
    """Swallow the log."""


def facts(config: TrainConfig) -> tuple[int, int]:
    """Sizes of the pool and of a selection."""
    arrays = np.load(config.run_dir / "selections/epoch_0000.npz")
    return len(arrays["labels"]), len(arrays["indices"])


COSTS = {
    "pass": ({}, lambda pool, kept: 4 * pool),
    "the teacher trains anyway": ({"score_source": "train", "loss": "kd"}, lambda pool, kept: 4 * pool - kept),
    "the teacher is asked for selection": ({"score_source": "train"}, lambda pool, kept: 4 * pool + kept),
    "no teacher": ({"score_source": "train", "select": "topk"}, lambda pool, kept: 3 * pool - 2 * kept),
    "any age, after a warm-up": (
        {"score_source": "train", "select": "topk", "score_max_age": None, "select_warmup": 1},
        lambda pool, kept: 0,
    ),
}


@pytest.mark.parametrize("name", COSTS)
def test_scoring_forwards_are_counted(tiny, name):
    """Three selections; with acs the first needs no teacher, and the pass of the second fills its cache."""
    change, cost = COSTS[name]
    config = replace(tiny, epochs=6, float_epochs=1, **change)
    summary = train(config, say=quiet)
    pool, kept = facts(config)
    kept = kept if name != "any age, after a warm-up" else 0
    assert summary["scoring_forwards"] == cost(pool, kept)


def test_the_loop_shows_each_batch_with_its_places_in_the_pool(tiny, monkeypatch):
    shown = []
    plain = ScoredSubset.observe

    def observe(policy, indices, logits, targets=None, teacher_logits=None):
        shown.append((policy.sampler.epoch, indices, targets, logits.requires_grad, teacher_logits))
        plain(policy, indices, logits, targets, teacher_logits)

    monkeypatch.setattr(ScoredSubset, "observe", observe)
    config = replace(tiny, score_source="train", select="bottomk", score="res", loss="kd", float_epochs=1)
    train(config, say=quiet)
    labels = torch.from_numpy(np.load(config.run_dir / "selections/epoch_0000.npz")["labels"])
    for epoch in range(4):
        indices = torch.cat([part for of, part, *_ in shown if of == epoch])
        chosen = np.load(config.run_dir / f"selections/epoch_{epoch // 2 * 2:04d}.npz")["indices"]
        assert sorted(indices.tolist()) == sorted(chosen.tolist())
        assert torch.equal(labels[indices], torch.cat([y for of, _, y, *_ in shown if of == epoch]))
    assert all(taught is not None and taught.shape[1] == 10 for *_, taught in shown)


def test_a_broken_run_comes_to_the_same_bits(tiny):
    config = replace(tiny, name="whole", score_source="train", loss="kd", interval=1)
    train(config, say=quiet)
    broken = replace(config, name="broken")

    def stop(line: str) -> None:
        if line.startswith("qat") and "epoch   2/4" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, say=stop)
    train(replace(broken, resume=True), say=quiet)
    states = [load_state(each.run_dir / "checkpoints/epoch_0003.pt") for each in (config, broken)]
    for state in states:
        state["policy"]["seen"]["values"].nan_to_num_(-1.0)  # never seen
    for part in ("model", "policy"):
        assert_same(states[0][part], states[1][part])


def train_here(config: TrainConfig) -> None:
    train(config, say=quiet)


def test_two_processes_put_together_what_they_observe(tiny, tmp_path):
    """Both end with the same selections and write a checkpoint that goes on, with the scores of all samples that were trained on."""
    change = {"score_source": "train", "select": "infobatch", "score": "loss", "fraction": 0.9, "select_warmup": 1, "score_max_age": None}
    config = replace(tiny_config(tmp_path / "two"), interval=1, epochs=3, float_epochs=0, **change)
    ranks = Ranks(2, tmp_path / "log", train_here, config)
    assert ranks.codes() == [0, 0], ranks.output()
    for epoch in (1, 2):
        arrays = np.load(config.run_dir / f"selections/epoch_{epoch:04d}.npz")
        assert np.isfinite(arrays["score_loss"]).all() and len(arrays["indices"]) < len(arrays["labels"])
    seen = load_state(config.run_dir / "checkpoints/epoch_0002.pt")["policy"]["seen"]
    pool = len(arrays["labels"])
    assert torch.equal(seen["labels"], torch.from_numpy(arrays["labels"])) and len(seen["epochs"]) == pool
    assert int((seen["epochs"] == 1).sum()) == len(np.load(config.run_dir / "selections/epoch_0001.npz")["indices"])
