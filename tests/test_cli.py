"""The command line: flags over YAML over defaults, one-line errors, exit codes, every command once."""

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastqat
import fastqat.cli
import fastqat.train.run
from fastqat.cli import main
from fastqat.selection.table import ScoreTable
from fastqat.train import demo
from fastqat.train.config import TrainConfig
from fastqat.train.folder import RunFolder

TINY = ["--limit=120", "--float-epochs=1", "--epochs=1", "--batch-size=16", "--fraction=0.3", "--no-report", "--no-progress", "--threads=1"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "runs"
    torch.set_num_threads(threads)


@pytest.fixture
def parsed(monkeypatch) -> list[TrainConfig]:
    """What `fastqat train` would have run."""
    seen: list[TrainConfig] = []
    command = fastqat.cli.COMMANDS["train"]
    monkeypatch.setitem(fastqat.cli.COMMANDS, "train", replace(command, run=seen.append))
    return seen


def test_flags_override_yaml(tmp_path, parsed):
    path = tmp_path / "c.yaml"
    path.write_text("data: cifar10\nlr: 0.5\namp: true\nselect: acs\n")
    assert main(["train", "--config", str(path), "--lr", "0.25", "--no-amp"]) == 0
    assert parsed[0] == TrainConfig(config=path, data="cifar10", lr=0.25, amp=False, select="acs")


def test_resume_by_name_takes_the_settings_of_the_run(runs, parsed):
    saved = TrainConfig(data="cifar10", lr=0.5, name="x", runs=runs)
    (runs / "x").mkdir(parents=True)
    (runs / "x" / "config.yaml").write_text(saved.to_yaml())
    assert main(["train", "--resume", "--name=x", "--runs", str(runs)]) == 0
    assert parsed[0] == replace(saved, resume=True)


def test_the_settings_of_a_run_start_another_and_resume_it_by_name(runs, parsed):
    named = TrainConfig(data="cifar10", lr=0.5, name="x", config=Path("mine.yaml"), resume=True, runs=Path("runs"))
    RunFolder(named.run_dir).open(named, resumed=False)
    assert main(["train", "--config", "runs/x/config.yaml", "--seed", "1"]) == 0
    assert parsed[0] == TrainConfig(data="cifar10", lr=0.5, seed=1, config=Path("runs/x/config.yaml"))
    assert parsed[0].run_dir != named.run_dir
    assert main(["train", "--resume", "--name", "x"]) == 0
    assert parsed[1] == replace(named, config=None) and RunFolder(parsed[1].run_dir).may_resume(parsed[1])
    Path("runs").rename("moved")
    assert main(["train", "--resume", "--name", "x", "--runs", "moved"]) == 0
    assert parsed[2] == replace(parsed[1], runs=Path("moved")) and RunFolder(parsed[2].run_dir).may_resume(parsed[2])


def test_train_score_report_and_resume(runs, capsys):
    assert main(["train", "--name", "a", "--select", "acs", *TINY]) == 0
    out = capsys.readouterr().out
    assert "test accuracy, last epoch" in out and "samples/s" in out and "float epoch   1/1" in out
    assert main(["train", "--name", "b", "--select", "rs2", *TINY]) == 0
    assert main(["train", "--name", "a", "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["score", "runs/a", "--scores", "evs", "ds", "entropy"]) == 0
    table = ScoreTable.load("runs/a/scores_pool.npz")
    assert set(table) == {"evs", "ds", "entropy"} and table.num_samples == 110 and float(table["ds"].max()) > 0
    assert main(["report", "runs/a", "runs/b"]) == 0
    out = capsys.readouterr().out
    assert "110 samples" in out and "comparison.html" in out and Path("comparison.html").is_file()


def test_info_tells_versions_and_backends(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    if "native part: loaded" in out:
        assert f"active cpu level: {fastqat._C.cpu_level()}" in out
    assert torch.__version__ in out and "native part" in out and "reference" in out and "matplotlib" in out


def test_demo_compares_four_runs(runs, capsys, monkeypatch):
    small = {name: (about, replace(c, limit=150, float_epochs=1, epochs=min(c.epochs, 1))) for name, (about, c) in demo.STORIES.items()}
    monkeypatch.setattr(demo, "STORIES", small)
    for _ in range(2):  # a second demo replaces the first
        assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert (
        "the tenth that ACS picks" in out and (runs / "demo/comparison.html").is_file() and (runs / "demo/acs-tenth/report.html").is_file()
    )


def test_bench_passes_its_flags_on(monkeypatch):
    bench = pytest.importorskip("fastqat._bench.run")
    seen = {}
    monkeypatch.setattr(bench, "main", lambda **flags: seen.update(flags))
    assert main(["bench", "--quick", "--filter", "lsq"]) == 0
    assert seen["quick"] is True and seen["filter"] == "lsq"


BAD = {
    "fraction": (["train", "--fraction", "0"], "fraction must lie in (0, 1]; got 0.0"),
    "name outside runs": (["train", "--name", "../x"], "name must be a single folder name"),
    "name outside runs to resume": (["train", "--name", "../x", "--resume"], "name must be a single folder name"),
    "missing data": (["train", "--data", "fashion-mnist", "--data-root", "nowhere"], "torchvision.datasets.FashionMNIST"),
    "missing YAML": (["train", "--config", "no.yaml"], "cannot read settings from no.yaml"),
    "no run to score": (["score", "nowhere"], "nowhere is not a run directory"),
    "no run to report": (["report", "nowhere"], "nowhere"),
    "unknown command": (["fly"], "unknown command 'fly'"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line_with_exit_code_2(runs, case, capsys):
    argv, message = BAD[case]
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not runs.exists() or not list(runs.iterdir())


def test_full_disk_is_one_line_and_keeps_what_was_there(runs, capsys, monkeypatch):
    assert main(["train", "--name", "a", *TINY, "--epochs", "2"]) == 0
    before = {path: path.read_bytes() for path in (runs / "a").rglob("*.pt")}
    (runs / "a/summary.json").unlink()
    capsys.readouterr()

    def full(self, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["train", "--name", "a", "--resume"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err and "free some space" in err
    assert {path: path.read_bytes() for path in (runs / "a").rglob("*.pt")} == before


def test_full_disk_while_scoring_is_one_line(runs, capsys):
    """The kernel refuses the write (EFBIG) as it does on a full disk."""
    assert main(["train", "--name", "a", *TINY]) == 0
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert main(["score", "runs/a", "--no-progress"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ") and "cannot write runs/a/scores_pool.npz" in err
    assert not list((runs / "a").glob("*scores*")) and not list((runs / "a").glob(".*.part"))


def test_debug_shows_the_traceback(runs, capsys, monkeypatch):
    monkeypatch.setenv("FASTQAT_DEBUG", "1")
    assert main(["train", "--fraction", "2"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_not_hidden(runs, monkeypatch):
    monkeypatch.setattr(fastqat.train.run, "prepare_data", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", *TINY])


def test_ctrl_c_says_how_to_go_on(tmp_path):
    command = [
        sys.executable,
        "-m",
        "fastqat",
        "train",
        "--name",
        "x",
        "--runs",
        str(tmp_path),
        "--epochs",
        "100000",
        "--float-epochs",
        "1",
    ]
    root = Path(fastqat.cli.__file__).parents[1]
    heeded = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background is born deaf to it
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeded)
    deadline = time.monotonic() + 120
    while not (tmp_path / "x/checkpoints/epoch_0001.pt").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == [f"interrupted; go on with: fastqat train --resume --name x --runs {tmp_path}"]


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert exit_.value.code == 0
    for flag in ("--val-fraction", "--bn-reestimate", "--resume", "--float-epochs"):
        assert flag in out
    assert "Share of the pool that is selected." in out
    assert "{none,random,rs2,acs," in out and "{cosine,half_cosine,linear" in out and "{paper,per_scale,range,none}" in out
