"""`fastqat train` in several processes: from equal weights the picks of one process, the same bits after a kill, errors shown once."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fastqat
from fastqat import _torchrun
from fastqat.cli import main
from fastqat.train.config import TrainConfig
from tests.processes import Ranks

from .conftest import tiny_config
from .test_resume import assert_same_end

ROOT = Path(fastqat.__file__).parents[1]


def settings(config: TrainConfig) -> Path:
    """`config` as the YAML file of ``--config``."""
    config.runs.mkdir(parents=True, exist_ok=True)
    path = config.runs / f"{config.name}.yaml"
    path.write_text(config.to_yaml())
    return path


def command(argv: list[str]) -> int:
    """`main`; nobody waits long for a process that was killed."""
    _torchrun._LEAVE = 0.7
    return main(argv)


def train(size: int, config: TrainConfig, *flags: str) -> Ranks:
    """The command of `size` processes."""
    return Ranks(size, config.runs / f"log_{config.name}", command, ["train", "--config", str(settings(config)), *flags])


def train_to_end(size: int, config: TrainConfig, *flags: str) -> list[str]:
    """What the processes said."""
    ranks = train(size, config, *flags)
    assert ranks.codes() == [0] * size, ranks.output()
    return ranks.output().splitlines()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> TrainConfig:
    """An undisturbed run of two processes, by the real launcher; batches of 16 are dealt in halves, the last in parts of two and three."""
    folder = tmp_path_factory.mktemp("two")
    config = replace(tiny_config(folder), qconfig="w2a4", fraction=0.29, grad_factor="per_scale")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastqat"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, "train", "--config", str(settings(config))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120)
    assert done.returncode == 0 and done.stdout.count("test accuracy, last epoch") == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum("2 processes on cpu" in line for line in lines) == 1 and sum("samples/s" in line for line in lines) == 6, lines
    return config


def test_from_the_same_weights_several_processes_pick_the_samples_that_one_picks(two, tmp_path):
    """The first scores are the same bits; 130 samples are no multiple of a batch. Later ones are of weights that differ, see `train`."""
    first, files = {}, []
    float_model = two.run_dir / "checkpoints/float.pt"
    configs = {size: replace(two, runs=tmp_path, name=f"of{size}", epochs=1, float_checkpoint=float_model) for size in (1, 2, 3)}
    started = [train(size, config) for size, config in configs.items()]
    for (size, config), ranks in zip(configs.items(), started, strict=True):
        assert ranks.codes() == [0] * size, ranks.output()
        with np.load(config.run_dir / "selections/epoch_0000.npz") as arrays:
            first[size] = dict(arrays)
        files.append(sorted(str(path.relative_to(config.run_dir)) for path in config.run_dir.rglob("*")))
        assert f'"processes": {size}' in (config.run_dir / "summary.json").read_text()
    assert files[0] == files[1] == files[2] and "metrics.csv" in files[0]
    for size in (2, 3):
        assert first[size].keys() == first[1].keys() and len(first[1]) > 2
        for name, values in first[1].items():
            assert np.array_equal(values, first[size][name]), (size, name)


def test_a_killed_run_comes_to_the_same_bits(two, tmp_path):
    """Process 1 dies in the float stage, process 0 while the quantized model trains."""
    config = replace(two, runs=tmp_path)
    for victim, file in ((1, "float_0000.pt"), (0, "epoch_0001.pt")):
        ranks = train(2, config, "--resume")
        ranks.wait_for(config.run_dir / "checkpoints" / file)
        ranks.kill(victim)
        codes = ranks.codes()
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 2, ranks.output()
        assert ranks.output().count("error: ") == 1 and "lost contact with another one" in ranks.output(), ranks.output()
    lines = train_to_end(2, config, "--resume")
    assert any("qat: resumed after epoch" in line for line in lines), lines
    assert_same_end(config, two)


def test_a_damaged_checkpoint_is_passed_over_by_all(two, tmp_path):
    config = replace(two, runs=tmp_path)
    shutil.copytree(two.run_dir, config.run_dir)
    os.truncate(config.run_dir / "checkpoints/epoch_0003.pt", 1000)
    (config.run_dir / "summary.json").unlink()
    lines = train_to_end(2, config, "--resume")
    assert sum("epoch_0003.pt is damaged" in line for line in lines) == 1, lines
    assert_same_end(config, two)


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({}, ("--no-such-flag",), "no-such-flag"),
        ({}, ("--lr", "-1"), "error: lr must be a finite number of at least 0; got -1.0"),
        ({}, (), "exists; continue it with --resume"),
        ({"data": "npz:/no/such/file", "name": "missing"}, (), "error: there is no file /no/such/file"),
        ({"batch_size": 3, "name": "small"}, (), "error: batch_size is that of all 2 processes, at least 2 for each; got 3"),
        ({"sync_bn": True, "device": "cpu", "name": "sync"}, (), "error: sync_bn needs GPUs"),
    ],
    ids=["flag", "value", "exists", "data", "batch", "sync"],
)
def test_an_error_is_shown_once(two, change, flags, message):
    ranks = train(2, replace(two, **change), *flags)
    assert ranks.codes() == [2, 2], ranks.output()
    assert ranks.output().count(message) == 1 and "Traceback" not in ranks.output(), ranks.output()


def test_other_commands_refuse_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["demo"]) == 2
    assert "runs in one process; got WORLD_SIZE=2; start it without torchrun" in capsys.readouterr().err
    assert torch.distributed.is_initialized() is False
