"""Kill -9 at any moment and resume: the final weights have the same bits as those of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastqat._files
from fastqat._errors import CheckpointError
from fastqat.train.checkpoint import load_state
from fastqat.train.config import TrainConfig
from fastqat.train.run import train
from tests.test_data import make_folder

from .conftest import tiny_config

COLUMNS_OF_TIME = ("samples_per_second", "seconds", "selection_seconds")


def quiet(line: str) -> None:
    """Swallow the log."""


def final_state(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_state(config.run_dir / "checkpoints" / f"epoch_{config.epochs - 1:04d}.pt")


def assert_same_end(config: TrainConfig, reference: TrainConfig) -> None:
    """Same bits in weights, optimizer and best checkpoint; same metrics, selections and summary, times apart."""
    ours, theirs = final_state(config), final_state(reference)
    for part in ("model", "policy"):
        assert_same(ours[part], theirs[part])
    assert_same(ours["optimizer"]["state"], theirs["optimizer"]["state"])
    assert_same(*(load_state(c.run_dir / "checkpoints/best.pt") for c in (config, reference)))
    assert metric_rows(config) == metric_rows(reference)
    names = [sorted(p.name for p in (c.run_dir / "selections").iterdir()) for c in (config, reference)]
    assert names[0] == names[1] == ["epoch_0000.npz", "epoch_0002.npz"]
    assert not list(config.run_dir.rglob("*.part")) and not list(config.run_dir.rglob("float_0*.pt"))


def assert_same(a, b, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "selection_seconds":
                assert_same(a[key], b[key], f"{where}.{key}")
    else:
        assert a == b, where


def metric_rows(config: TrainConfig) -> list[dict[str, str]]:
    lines = [line.split(",") for line in (config.run_dir / "metrics.csv").read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    return [{key: value for key, value in row.items() if key not in COLUMNS_OF_TIME} for row in rows]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> TrainConfig:
    threads = torch.get_num_threads()
    config = tiny_config(tmp_path_factory.mktemp("reference"))
    train(config, say=quiet)
    torch.set_num_threads(threads)
    return config


def start(config: TrainConfig) -> subprocess.Popen:
    path = config.runs / "settings.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(replace(config, resume=True).to_yaml())
    command = [sys.executable, "-m", "fastqat", "train", "--config", str(path), "--resume"]
    root = Path(fastqat._files.__file__).parents[1]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_when(process: subprocess.Popen, path: Path, delay: float) -> None:
    """SIGKILL `delay` seconds after `path` appears, or let the process end if it is faster than that."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not path.exists():
        assert time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_sigkill_in_float_and_qat_stage(reference, tmp_path):
    """Two kills at random moments, one per stage; the seed is in the failure message."""
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    config = tiny_config(tmp_path / "runs")
    checkpoints = config.run_dir / "checkpoints"
    kill_when(start(config), checkpoints / "float_0000.pt", moments.uniform(0, 0.1))
    kill_when(start(config), checkpoints / f"epoch_{moments.randrange(2):04d}.pt", moments.uniform(0, 0.1))
    output, _ = (process := start(config)).communicate(timeout=120)
    assert process.returncode == 0, output
    try:
        assert_same_end(config, reference)
    except AssertionError as error:
        raise AssertionError(f"moments drawn with seed {seed}") from error


class Crash(BaseException):
    """Stands for the kill: nothing handles it."""


def crash_at_write(monkeypatch: pytest.MonkeyPatch, at: int, after_rename: bool) -> None:
    """The process dies at its `at`-th file, just before or just after the rename that makes it visible; the part file stays."""
    count = 0
    rename = os.replace

    def replace_or_die(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == at and not after_rename:
            os.link(source, Path(source).with_name(f".{Path(target).name}.dead.part"))
            raise Crash
        rename(source, target)
        if count == at:
            raise Crash

    monkeypatch.setattr(fastqat._files.os, "replace", replace_or_die)


@pytest.mark.parametrize("after_rename", [False, True])
def test_crash_at_every_file_that_a_run_writes(reference, tiny, monkeypatch, after_rename):
    """Every second write crashes in turn within one run that is resumed again and again until it ends."""
    crashes = 0
    for attempt in range(60):
        with monkeypatch.context() as patch:
            crash_at_write(patch, 2 + attempt % 4, after_rename)
            try:
                train(replace(tiny, resume=True), say=quiet)
                break
            except Crash:
                crashes += 1
    assert crashes >= 5
    assert_same_end(tiny, reference)


def test_damaged_newest_checkpoint_costs_one_epoch(reference, tiny):
    told: list[str] = []
    train(tiny, say=quiet)
    newest = tiny.run_dir / "checkpoints/epoch_0003.pt"
    os.truncate(newest, 1000)
    (tiny.run_dir / "summary.json").unlink()
    train(replace(tiny, resume=True), say=told.append)
    assert any("epoch_0003.pt is damaged" in line for line in told) and "qat: resumed after epoch 2" in told
    assert_same_end(tiny, reference)


def test_fresh_start_clears_what_a_half_deleted_run_left(reference, tiny):
    train(replace(tiny, epochs=6), say=quiet)
    (tiny.run_dir / "config.yaml").unlink()
    (tiny.run_dir / "notes.txt").write_text("mine")
    train(tiny, say=quiet)
    assert_same_end(tiny, reference)
    assert [path.name for path in sorted((tiny.run_dir / "checkpoints").glob("epoch_*"))] == ["epoch_0002.pt", "epoch_0003.pt"]
    assert (tiny.run_dir / "notes.txt").read_text() == "mine"


def test_overwrite_that_is_killed_leaves_no_mixture(reference, tiny, monkeypatch):
    train(replace(tiny, epochs=6), say=quiet)
    with monkeypatch.context() as patch:
        patch.setattr("fastqat.train.folder.shutil.rmtree", lambda path: crash())
        with pytest.raises(Crash):
            train(replace(tiny, overwrite=True), say=quiet)
    assert (tiny.run_dir / "checkpoints/epoch_0005.pt").is_file()
    train(replace(tiny, resume=True), say=quiet)
    assert_same_end(tiny, reference)


def crash() -> None:
    raise Crash


def test_resume_of_a_finished_run_writes_the_missing_page(tiny):
    pytest.importorskip("matplotlib")
    config = replace(tiny, epochs=1, report=True)
    first = train(config, say=quiet)
    (tiny.run_dir / "report.html").unlink()
    assert train(replace(config, resume=True), say=quiet) == first
    assert (tiny.run_dir / "report.html").is_file()


def test_resume_of_a_finished_run_returns_its_summary(tiny):
    first = train(tiny, say=quiet)
    told: list[str] = []
    assert train(replace(tiny, resume=True), say=told.append) == first
    assert told == [f"run {tiny.run_dir} is finished"]


def test_resume_with_other_settings_is_refused(tiny):
    train(replace(tiny, epochs=1), say=quiet)
    with pytest.raises(CheckpointError, match=r"was started with epochs 1 \(now 4\); resume it with the same settings"):
        train(replace(tiny, resume=True), say=quiet)


def test_checkpoint_of_another_model_is_refused(tiny):
    train(tiny, say=quiet)
    config = tiny.run_dir / "config.yaml"
    config.write_text(config.read_text().replace("model: resnet8", "model: resnet20"))
    (tiny.run_dir / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="is of another architecture"):
        train(replace(tiny, model="resnet20", resume=True), say=quiet)


def test_folder_of_pictures_with_workers(tiny, tmp_path, monkeypatch):
    """The DataLoader path: random transforms and a torchvision model, crashed after the first epochs and resumed."""
    pytest.importorskip("torchvision")
    make_folder(tmp_path / "pictures", each=20)
    change = {"data": f"imagefolder:{tmp_path / 'pictures'}", "image_size": 32, "workers": 1, "model": "mobilenet_v3_small"}
    config = replace(tiny, limit=None, float_epochs=1, epochs=2, **change)
    train(replace(config, name="whole"), say=quiet)
    with monkeypatch.context() as patch:
        crash_at_write(patch, 6, after_rename=True)
        with pytest.raises(Crash):
            train(config, say=quiet)
    told: list[str] = []
    train(replace(config, resume=True), say=told.append)
    assert any("resumed after epoch 0" in line for line in told)
    assert_same(final_state(config)["model"], final_state(replace(config, name="whole"))["model"])
