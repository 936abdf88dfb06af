"""score_dataset: a pass that was killed continues where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from fastqat._errors import InputError
from fastqat.selection import TeacherCache, score_dataset
from fastqat.selection.scoring import checkpoint as pass_checkpoint

from .scoring import SIZE, Calls, Counting, Stream, data, net

NAMES = ["evs", "ds", "grand_last", "moderate"]


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every batch."""
    monkeypatch.setattr(pass_checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(pass_checkpoint, "SHARE", 0.0)


def run(folder, *, stop_at=None, student=None, dataset=None, names=NAMES, teacher=None, batch_size=10, **options):
    """A pass with a checkpoint; `stop_at`: the batch whose forward fails."""
    student, calls = student or net(), Calls(stop_at)

    def forward(model, x):
        calls.count += model is student
        if calls.count == calls.stop_at:
            raise RuntimeError("stopped")
        return model(x)

    options = {"features": "embedding", "teacher": teacher or net(1), "forward": forward, "checkpoint": folder / "pass", **options}
    table = score_dataset(student, dataset or data(), names, batch_size=batch_size, **options)
    return table, calls.count


def same(table, want):
    return (
        all(torch.equal(table[name], want[name]) for name in want)
        and torch.equal(table.labels, want.labels)
        and torch.equal(table.features, want.features)
    )


def parts(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("form", ["map", "stream"])
def test_a_pass_that_failed_goes_on_and_gives_the_same_bits(tmp_path, often, form):
    more = {"dataset": Stream(), "data_key": "stream"} if form == "stream" else {}
    want, calls = run(tmp_path, **more)
    assert calls == 11 and parts(tmp_path) == []
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, stop_at=8, **more)
    assert parts(tmp_path) == ["pass"]
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, stop_at=2, **more)
    table, calls = run(tmp_path, **more)
    assert same(table, want) and calls == 3 and parts(tmp_path) == []


def test_the_teachers_file_goes_on_with_the_pass(tmp_path, often):
    teacher = Counting(net(1))
    want, _ = run(tmp_path, teacher=net(1))
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, stop_at=8, teacher=TeacherCache(teacher, path=tmp_path / "teacher"))
    unfinished = parts(tmp_path)
    assert len(unfinished) == 2 and unfinished[0].startswith(".teacher.") and unfinished[1] == "pass"
    cache = TeacherCache(teacher, path=tmp_path / "teacher")
    table, calls = run(tmp_path, teacher=cache)
    assert same(table, want) and calls == 4 and teacher.samples == SIZE and cache.complete and parts(tmp_path) == ["teacher"]
    assert same(run(tmp_path, teacher=cache)[0], want) and teacher.samples == SIZE


def test_without_its_part_of_the_teachers_file_the_pass_starts_anew(tmp_path, often):
    want, _ = run(tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, stop_at=8, teacher=TeacherCache(net(1), path=tmp_path / "teacher"))
    (tmp_path / parts(tmp_path)[0]).unlink()
    with pytest.warns(UserWarning, match="starts anew, .* cannot be used: the teacher's logits that belong to it are gone"):
        table, calls = run(tmp_path, teacher=TeacherCache(net(1), path=tmp_path / "teacher"))
    assert same(table, want) and calls == 11


def test_the_unfinished_file_of_another_pass_is_not_taken_for_its_own(tmp_path, often):
    want, _ = run(tmp_path)
    for stop_at, options in ((8, {}), (3, {"checkpoint": tmp_path / "other"})):
        for part in tmp_path.glob(".teacher*"):
            part.unlink()
        with pytest.raises(RuntimeError, match="stopped"):
            run(tmp_path, stop_at=stop_at, teacher=TeacherCache(net(1), path=tmp_path / "teacher"), **options)
    cache = TeacherCache(net(1), path=tmp_path / "teacher")
    with pytest.warns(UserWarning, match="the teacher's logits that belong to it are gone"):
        table, calls = run(tmp_path, teacher=cache)
    assert same(table, want) and calls == 11 and parts(tmp_path) == ["other", "teacher"]
    assert cache.logits.abs().sum(1).min() > 0


def test_a_pass_under_autocast_is_not_continued_without(tmp_path, often):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, stop_at=8)
    with pytest.warns(UserWarning, match="changed since: arithmetic"):
        table, _ = run(tmp_path)
    assert same(table, run(tmp_path)[0])


def test_a_cache_in_memory_is_not_complete_after_the_second_half_of_a_pass(tmp_path, often):
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, stop_at=8)
    cache = TeacherCache(net(1))
    want, _ = run(tmp_path, teacher=cache)
    assert not cache.complete and cache.nbytes == 0
    assert same(run(tmp_path, teacher=cache)[0], want) and cache.complete


def other_data():
    x, y = data().tensors
    return TensorDataset(x + 1, y)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"student": net(5)}, "model"),
        ({"dataset": other_data()}, "data set"),
        ({"teacher": net(6)}, "teacher"),
        ({"names": ["evs", "ds"]}, "request"),
        ({"features": "error"}, "request"),
        ({"batch_size": 11}, "batch size"),
        ({"forward": lambda model, x: model(x)}, "forward"),
    ],
)
def test_a_checkpoint_of_something_else_is_not_used_and_this_is_said(tmp_path, often, change, reason):
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, stop_at=8)
    with pytest.warns(UserWarning, match=f"the pass starts anew, the checkpoint .*pass cannot be used: changed since: {reason}"):
        table, _ = run(tmp_path, **change)
    (tmp_path / "fresh").mkdir()
    assert same(table, run(tmp_path / "fresh", **change)[0]) and parts(tmp_path) == ["fresh"]


def test_a_damaged_checkpoint_is_not_used_and_a_stream_needs_a_name(tmp_path, often):
    (tmp_path / "pass").write_bytes(b"garbage")
    with pytest.warns(UserWarning, match="cannot be used: it is damaged"):
        run(tmp_path)
    with pytest.raises(InputError, match="the content of Stream cannot be told"):
        run(tmp_path, dataset=Stream())


def test_checkpoints_are_rare_and_cheap(tmp_path, monkeypatch):
    """None within the first half minute; then not before 50 times what the last one took."""
    clock = [0.0]
    monkeypatch.setattr(pass_checkpoint.time, "monotonic", lambda: clock[0])
    written = []

    def state(cost):
        written.append(clock[0])
        clock[0] += cost
        return {"x": torch.zeros(1)}

    saved = pass_checkpoint.PassCheckpoint(tmp_path / "pass", {}, pass_checkpoint.Deal())
    for now, cost in ((29.9, 1), (30, 2), (100, 1), (131.9, 1), (132, 0.1), (162, 0), (162.2, 0)):
        clock[0] = now
        saved.save_if_due(lambda cost=cost: state(cost))
    assert written == [30, 132, 162.2]


KILLED = """
import sys
from pathlib import Path
from fastqat.selection import TeacherCache
from fastqat.selection.scoring import checkpoint as pass_checkpoint
from tests.selection import test_scorer_resume as here
pass_checkpoint.SECONDS = pass_checkpoint.SHARE = 0.0
folder = Path(sys.argv[1])

forward = here.counted(here.Calls(13), folder)
here.run(folder, teacher=TeacherCache(here.net(1), path=folder / "teacher"), forward=forward)
"""


def counted(calls, folder):
    """A forward that counts its calls, those of the teacher too, and says so and waits in the one where it is to stop."""

    def forward(model, x):
        calls.count += 1
        if calls.count == calls.stop_at:
            (folder / "here").touch()
            time.sleep(60)
        return model(x)

    return forward


def test_a_killed_process_is_continued(tmp_path, often):
    """SIGKILL, so that nothing of it has a chance to clean up."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not (tmp_path / "here").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (tmp_path / "here").unlink()
    left = parts(tmp_path)
    assert len(left) == 2 and "pass" in left, left
    calls = Calls()
    table, _ = run(tmp_path, teacher=TeacherCache(net(1), path=tmp_path / "teacher"), forward=counted(calls, tmp_path))
    want, _ = run(tmp_path)
    assert same(table, want) and calls.count == 2 * 5 and parts(tmp_path) == ["teacher"]
