"""The processes of a study: data kept between runs, ends of runs, processes that die."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastqat.train.config import DATA_FIELDS, TrainConfig
from fastqat.train.pool import prepare_data
from fastqat.train.run import train
from fastqat.train.stage import Stage
from fastqat.train.study_grid import StudyRun
from fastqat.train.study_jobs import Job, KeptData, _fault, _run, ended, new_stop

CPU = torch.device("cpu")


class StopAfter:
    """A flag that is set once it was asked `asked` times."""

    def __init__(self, asked: int):
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_data_are_kept_while_their_settings_stay():
    config, kept = TrainConfig(limit=100), KeptData()
    first = kept(config, CPU)
    assert kept(replace(config, select="acs", lr=0.5, seed=3), CPU) is first
    assert len(kept(replace(config, limit=120), CPU).labels) == 110
    noisy = kept(replace(config, label_noise=0.2), CPU)
    assert kept(replace(config, label_noise=0.2, seed=1), CPU) is not noisy
    assert kept(config, CPU) is not first and torch.equal(kept(config, CPU).labels, first.labels)


def test_data_depend_on_no_setting_that_is_not_named():
    class Watched:
        """Settings that know what was read of them."""

        def __init__(self, config):
            self.config, self.read = config, set()

        def __getattr__(self, name):
            self.read.add(name)
            return getattr(self.config, name)

    for config in (TrainConfig(limit=100), TrainConfig(limit=100, loss="kd", label_noise=0.1, oracle_teacher=True)):
        watched = Watched(config)
        prepare_data(watched, CPU)
        assert watched.read - {"used_float_seed"} <= set(DATA_FIELDS), "used_float_seed is that of noise_seed"


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tiny, checkpoint_seconds):
    whole = train(replace(tiny, name="whole"), say=lambda line: None)
    config, kept = replace(tiny, name="cut", resume=True, rho=False, checkpoint_seconds=checkpoint_seconds), KeptData()
    asked, kinds = 2, ["stopped"]
    while kinds[-1] == "stopped":
        kinds.append(_run(config, StopAfter(asked), kept)[0])
        asked += 1
    assert kinds[-1] == "done" and len(kinds) > 3
    cut, straight = (np.genfromtxt(tiny.runs / name / "metrics.csv", delimiter=",", names=True) for name in ("cut", "whole"))
    assert np.array_equal(cut["train_loss"], straight["train_loss"]) and train(config)["test_accuracy"] == whole["test_accuracy"]


def test_float_weights_are_tested_once_for_runs_that_share_them(tiny, monkeypatch):
    tested, evaluate = [], Stage.evaluate

    def counted(stage, dataset, model=None):
        tested.append(model is not None)
        return evaluate(stage, dataset, model)

    monkeypatch.setattr(Stage, "evaluate", counted)
    kept, config = KeptData(), replace(tiny, val_fraction=0.0, float_epochs=1, epochs=1)
    found = [train(replace(config, name=name, lr=lr), say=lambda line: None, data_of=kept) for name, lr in (("a", 0.1), ("b", 0.2))]
    other = train(replace(config, name="c", float_seed=1), say=lambda line: None, data_of=kept)
    assert tested == [False, True, False, False, True]
    assert found[0]["float_accuracy"] == found[1]["float_accuracy"] != other["float_accuracy"]


def test_a_run_that_fails_tells_why(tiny, monkeypatch):
    never = StopAfter(1000)
    kind, message = _run(replace(tiny, data="npz:nowhere.npz"), never, KeptData())
    assert kind == "failed" and "nowhere.npz" in message
    monkeypatch.setattr("fastqat.train.run.plan_of", lambda *_: 1 / 0)
    kind, message = _run(tiny, never, KeptData())
    assert kind == "failed" and message.startswith("ZeroDivisionError: division by zero (test_study_jobs.py:")


def test_a_run_is_checked_with_its_data_and_model(tiny):
    kept = KeptData()
    assert _fault(tiny, kept) == "" and not tiny.runs.exists()
    assert "layer9" in _fault(replace(tiny, loss="kd_clc", clc_layers="layer9"), kept)


def test_a_process_that_dies_is_told(tiny):
    job = Job(new_stop())
    first, second = job.check([tiny, replace(tiny, loss="kd_clc", clc_layers="layer9")])
    assert not first and "layer9" in second
    job.begin(StudyRun("a", replace(tiny, epochs=10**6)))
    os.kill(job._process.pid, signal.SIGKILL)
    assert ended([job], 30) == [job]
    outcome = job.outcome()
    assert job.check([tiny, tiny]) == ["", ""]
    assert (outcome.kind, job.run, job.alive) == ("failed", None, False) and "exit code -9" in outcome.message
    job.begin(StudyRun("a", tiny))  # a process that is gone already
    assert job.outcome().kind == "failed"
    job.end()
