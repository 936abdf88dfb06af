"""Float models that runs share: one process trains, the others wait for it; the code that a run names is the one that ran."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from fastqat.train import float_stage, outcome
from fastqat.train.run import train


def test_a_run_waits_for_the_process_that_trains_its_float_model(tiny, monkeypatch):
    monkeypatch.setattr(float_stage, "_PATIENCE", 0.01)
    config = replace(tiny, float_epochs=1, epochs=1)
    first = train(config, say=lambda line: None)
    (cached,) = (tiny.runs / ".float").glob("*.pt")
    kept = cached.rename(cached.with_suffix(".away"))
    lock, lines = FileLock(cached.with_suffix(".lock")), []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("waiting") and sum(line.startswith("waiting") for line in lines) == 2:
            kept.rename(cached)  # the other process is done
            lock.release()

    with lock:
        second = train(replace(config, name="second"), say=say)
    told = [line for line in lines if "float weights" in line]
    assert len(told) == 3 and str(cached) in told[0] and told[2] == f"float weights of an earlier run ({cached})"
    assert second["float_model"] == first["float_model"] and second["float_accuracy"] == first["float_accuracy"]
    assert train(replace(config, name="third", float_seed=5), say=lambda line: None)["float_model"] != first["float_model"]


def test_float_weights_that_are_there_need_no_lock(tiny):
    config = replace(tiny, float_epochs=1, epochs=1)
    train(config, say=lambda line: None)
    (cached,) = (tiny.runs / ".float").glob("*.pt")
    with FileLock(cached.with_suffix(".lock")):
        train(replace(config, name="second"), say=lambda line: None)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree under git, which `source_commit` takes for its own."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    (tmp_path / "fastqat/train").mkdir(parents=True)
    (tmp_path / "bench/results").mkdir(parents=True)
    for name in ("fastqat/train/outcome.py", "bench/results/rows.csv"):
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    monkeypatch.setattr(outcome, "__file__", str(tmp_path / "fastqat/train/outcome.py"))
    outcome.source_commit.cache_clear()
    yield tmp_path
    outcome.source_commit.cache_clear()


def git(tree: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(["git", *who, *words], cwd=tree, check=True, capture_output=True, text=True).stdout.strip()


def commit(tree: Path) -> str:
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "--allow-empty", "-m", "x")
    return git(tree, "rev-parse", "HEAD")


def test_the_commit_is_that_of_the_code_which_was_imported(tree):
    head = git(tree, "rev-parse", "HEAD")
    (tree / "bench/results/rows.csv").write_text("2\n")  # what studies write is no code
    assert outcome.source_commit() == head
    commit(tree)
    assert outcome.source_commit() == head


def test_code_that_is_not_committed_is_told(tree):
    (tree / "fastqat/train/outcome.py").write_text("2\n")
    assert outcome.source_commit() == f"{git(tree, 'rev-parse', 'HEAD')}-dirty"
    shutil.rmtree(tree / ".git")
    outcome.source_commit.cache_clear()
    assert outcome.source_commit() is None
