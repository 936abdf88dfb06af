"""Studies: order of runs, float models, failures, time limits, kills; the real thing once, with processes that are killed."""

import csv
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import fastqat.train.study as study
from fastqat._errors import CheckpointError, FastqatError, InputError
from fastqat.cli import main
from fastqat.train.folder import RunFolder
from fastqat.train.run import train
from fastqat.train.study_jobs import KeptData, Outcome

TINY = "base: {limit: 120, float_epochs: 1, float_batch_size: 32, epochs: 2, batch_size: 16, fraction: 0.3, interval: 1}\n"


class World:
    """Jobs without processes: what was begun and ended in which order, and how many ran at once."""

    def __init__(self, monkeypatch, outcomes=None):
        self.outcomes = outcomes or {}
        self.faults: dict[str, str] = {}
        self.begun: list[str] = []
        self.at_once: list[set[str]] = []
        self.jobs: list = []
        self.ended = 0
        world, kept = self, KeptData()

        class Job:
            alive = True

            def __init__(self, stop):
                self.stop, self.run = stop, None
                world.jobs.append(self)

            def begin(self, run, trains):
                self.run, self.trains = run, trains
                world.begun.append(run.label)
                world.at_once.append({job.run.label for job in world.jobs if job.run})

            def check(self, configs):
                return [world.faults.get(config.name, "") for config in configs]

            def outcome(self):
                run, self.run = self.run, None
                kind = world.outcomes.get(run.label, "done")
                if isinstance(kind, BaseException):
                    raise kind
                if kind == "done" and not self.stop.is_set():
                    train(run.config, say=lambda line: None, data_of=kept)
                elif kind == "done":
                    kind = "stopped"
                return Outcome(kind, 2.0, "told why" if kind == "failed" else "")

            def end(self):
                world.ended += 1

        monkeypatch.setattr(study, "Job", Job)
        monkeypatch.setattr(study, "ended", lambda busy, timeout: busy[:1])


def write(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(TINY + text)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_all_cells_of_a_seed_before_the_next_and_a_line_for_each(tmp_path, monkeypatch, one_thread):
    world, lines = World(monkeypatch), []
    path = write(tmp_path, "seeds: 2\nfloat_seeds: 1\ncells: [{name: a, select: rs2}, {name: b, select: acs}]")
    found = study.run_study(path, runs=tmp_path / "runs", say=lines.append)
    assert world.begun == ["a seed 0", "b seed 0", "a seed 1", "b seed 1"] and world.ended == 1
    assert len(list((tmp_path / "runs/.float").glob("*.pt"))) == 1
    assert lines[0] == "study s: 4 runs, 0 done, 1 side by side" and "[2/4] b seed 0: " in lines[2] and "left" in lines[2]
    assert "left" not in lines[4] and lines[5] == f"4 of 4 runs are done; rows: {tmp_path / 'runs/s/study_s.csv'}"
    kept = rows(tmp_path / "runs/s/study_s.csv")
    assert [(row["cell"], row["seed"], row["float_seed"]) for row in kept] == [(c, s, "0") for c in "ab" for s in "01"]
    found.sort(key=lambda row: row["cell"])
    assert [float(row["test_accuracy"]) for row in kept] == pytest.approx([row["test_accuracy"] for row in found], rel=1e-5)
    assert len(rows(tmp_path / "runs/s/study_s_curve.csv")) == 8
    world.begun.clear()
    (tmp_path / "runs/s/study_s.csv").unlink()
    study.run_study(path, runs=tmp_path / "runs", jobs=4, progress=False, say=lines.append)
    assert not world.begun and len(lines) == 8 and rows(tmp_path / "runs/s/study_s.csv") == kept


def test_no_float_model_is_trained_twice_at_once(tmp_path, monkeypatch, one_thread):
    world = World(monkeypatch)
    path = write(tmp_path, "seeds: 4\nfloat_seeds: 2\ncells: [{name: a, select: rs2}, {name: b, select: rs2, loss: kd}]")
    study.run_study(path, runs=tmp_path / "runs", jobs=3, say=lambda line: None)
    assert world.begun[:3] == ["a seed 0", "a seed 1", "b seed 0"]
    assert world.at_once[1:3] == [{"a seed 0", "a seed 1"}, {"a seed 1", "b seed 0"}]  # the third job waits for a float model
    assert sorted(world.begun) == sorted(f"{cell} seed {seed}" for cell in "ab" for seed in range(4))


def test_a_failed_run_stops_no_other_and_is_tried_again(tmp_path, monkeypatch, capsys, one_thread):
    world = World(monkeypatch, {"a seed 0": "failed"})
    path = write(tmp_path, "cells: [{name: a, select: rs2}, {name: b, select: rs2}]")
    command = ["train", "--study", str(path), "--runs", str(tmp_path / "runs")]
    assert main(command) == 2
    told = capsys.readouterr()
    assert "a seed 0 failed: told why" in told.out and "1 of 2 runs are done" in told.out
    assert "error: a seed 0 failed (told why); the same command tries again what failed" in told.err
    world.outcomes.clear()
    assert main([*command, "--jobs", "2"]) == 0 and world.begun == ["a seed 0", "b seed 0", "a seed 0"]


def test_some_cells_alone(tmp_path, monkeypatch, one_thread):
    world, lines = World(monkeypatch), []
    path = write(tmp_path, "cells: [{name: a, select: rs2}, {name: b, select: rs2}, {name: ac, select: rs2}]")
    study.run_study(path, runs=tmp_path / "runs", only="b", say=lines.append)
    study.run_study(path, runs=tmp_path / "runs", only="x, ac", say=lines.append)
    assert world.begun == ["b seed 0", "ac seed 0"] and lines[-1].startswith("2 of 3 runs are done")
    assert [row["cell"] for row in rows(tmp_path / "runs/s/study_s.csv")] == ["ac", "b"]


def test_what_is_left_can_be_asked(tmp_path, monkeypatch, one_thread):
    world, lines = World(monkeypatch), []
    path = write(tmp_path, "seeds: 2\nfloat_seeds: 1\ncells: [{name: a, select: rs2}, {name: b, select: rs2, weight_decay: 0.1}]")
    study.run_study(path, runs=tmp_path / "runs", minutes=0, say=lines.append)
    assert not world.begun and lines[1] == "not all cells start from the same float model: they differ in weight_decay"
    assert lines[-1] == "stopped: 0 of 4 runs are done, 4 are left; the same command goes on; no rows yet"


def test_a_cell_that_cannot_run_is_told_before_anything_starts(tmp_path, monkeypatch, one_thread):
    world = World(monkeypatch)
    world.faults = {"b-seed0": "no such layers"}
    path = write(tmp_path, "seeds: 2\nfloat_seeds: 1\ncells: [{name: a, select: rs2}, {name: b, select: rs2}]")
    with pytest.raises(InputError, match="cell 'b': no such layers; nothing was started: .*choose other cells with only=PATTERN"):
        study.run_study(path, runs=tmp_path / "runs", say=lambda line: None)
    assert not world.begun and world.ended == 1
    study.run_study(path, runs=tmp_path / "runs", only="a", say=lambda line: None)
    assert world.begun == ["a seed 0", "a seed 1"]


def test_what_is_under_way_goes_first(tmp_path, monkeypatch, one_thread):
    world = World(monkeypatch)
    path = write(tmp_path, "cells: [{name: a, select: rs2}, {name: b, select: rs2}]")
    second = study.read_study(path, tmp_path / "runs").runs[1].config
    RunFolder(second.run_dir).open(second, resumed=False)
    study.run_study(path, runs=tmp_path / "runs", say=lambda line: None)
    assert world.begun == ["b seed 0", "a seed 0"]


def test_the_end_of_the_time_stops_runs_and_tells_what_is_left(tmp_path, monkeypatch, one_thread):
    world, lines = World(monkeypatch), []
    path = write(tmp_path, "cells: [{name: a, select: rs2}, {name: b, select: rs2}, {name: c, select: rs2}]")
    now = iter([0.0, 1.0, 2.0, *[61.0] * 99])
    monkeypatch.setattr(study.time, "monotonic", lambda: next(now))
    study.run_study(path, runs=tmp_path / "runs", minutes=1, say=lines.append)
    assert world.begun[0] == "a seed 0" and len(world.begun) < 3
    assert lines[-1].startswith("stopped: 1 of 3 runs are done, 2 are left, about ") and "the same command goes on" in lines[-1]


def test_ctrl_c_ends_all_jobs_and_tells_the_command(tmp_path, monkeypatch, capsys, one_thread):
    world = World(monkeypatch, {"a seed 0": KeyboardInterrupt()})
    path = write(tmp_path, "cells: [{name: a, select: rs2}, {name: b, select: acs, float_seed: 1}]".replace(", float_seed: 1", ""))
    assert main(["train", "--study", str(path), "--jobs=2", "--threads=1", "--minutes=60", "--runs", str(tmp_path / "runs")]) == 130
    command = f"fastqat train --study {path} --runs {tmp_path / 'runs'} --jobs 2 --minutes 60.0 --threads 1"
    assert f"the same command goes on: {command}\n" in capsys.readouterr().err
    assert world.ended == len(world.jobs) == 2


def test_a_process_that_died_is_replaced(tmp_path, monkeypatch, one_thread):
    world = World(monkeypatch, {"a seed 0": "failed"})
    path = write(tmp_path, "cells: [{name: a, select: rs2}, {name: b, select: rs2}]")
    monkeypatch.setattr(study.Job, "alive", property(lambda job: job is not world.jobs[0]))
    with pytest.raises(FastqatError, match="a seed 0 failed"):
        study.run_study(path, runs=tmp_path / "runs", say=lambda line: None)
    assert len(world.jobs) == world.ended == 2 and world.begun == ["a seed 0", "b seed 0"]


def test_damaged_files_of_a_finished_run_are_told(tmp_path, monkeypatch, one_thread):
    World(monkeypatch)
    path = write(tmp_path, "cells: [{name: a, select: rs2}]")
    study.run_study(path, runs=tmp_path / "runs", say=lambda line: None)
    (tmp_path / "runs/s/a-seed0/metrics.csv").unlink()
    with pytest.raises(FastqatError, match="a seed 0 failed .*a-seed0 is no finished run.*remove it, or leave it out.$"):
        study.run_study(path, runs=tmp_path / "runs", say=lambda line: None)


def test_a_run_with_other_settings_is_refused_before_anything_starts(tmp_path, monkeypatch):
    world = World(monkeypatch)
    old = study.read_study(write(tmp_path, "cells: [{name: a}, {name: b}]"), tmp_path / "runs").runs[1].config
    RunFolder(old.run_dir).open(replace(old, lr=0.5), resumed=False)
    with pytest.raises(CheckpointError, match="b-seed0 was started with lr 0.5"):
        study.run_study(tmp_path / "s.yaml", runs=tmp_path / "runs")
    assert not world.begun


def test_other_threads_are_refused_before_anything_starts(tmp_path, monkeypatch, one_thread):
    """They would bring another float model for the same float seed."""
    world = World(monkeypatch)
    study.run_study(write(tmp_path, "cells: [{name: a, select: rs2}]"), runs=tmp_path / "runs", say=lambda line: None)
    path = write(tmp_path, "cells: [{name: a, select: rs2}, {name: b}]")
    with pytest.raises(CheckpointError, match=r"a-seed0 was started with threads 1 \(now 2\).*go on with threads=1"):
        study.run_study(path, runs=tmp_path / "runs", threads=2)
    assert world.begun == ["a seed 0"]


def test_rows_of_runs_that_are_elsewhere_are_not_written_over(tmp_path, monkeypatch, one_thread):
    world, results = World(monkeypatch), tmp_path / "rows"
    path = write(tmp_path, "cells: [{name: a, select: rs2}, {name: b, select: rs2}]")
    study.run_study(path, runs=tmp_path / "first", results=results, say=lambda line: None)
    kept = (results / "study_s.csv").read_text()
    with pytest.raises(InputError, match=r"has rows of 2 runs that are not in .*second/s, a seed 0 for one"):
        study.run_study(path, runs=tmp_path / "second", results=results)
    assert len(world.begun) == 2 and (results / "study_s.csv").read_text() == kept
    study.run_study(write(tmp_path, "cells: [{name: a, select: rs2}]"), runs=tmp_path / "first", results=results, say=lambda line: None)
    assert [row["cell"] for row in rows(results / "study_s.csv")] == ["a"]  # a cell that was taken out of the file


def test_one_process_at_a_study(tmp_path, monkeypatch):
    from filelock import FileLock

    path = write(tmp_path, "cells: [{name: a}]")
    (tmp_path / "runs/s").mkdir(parents=True)
    with FileLock(tmp_path / "runs/s/.lock"), pytest.raises(InputError, match="another process is at the study"):
        study.run_study(path, runs=tmp_path / "runs")


BAD = {
    "--lr": (["--lr=0.5", "--no-balanced"], "leave out --balanced, --lr or write them into"),
    "--resume": (["--resume"], "leave out --resume"),
    "--name": (["--name=x"], "leave out --name"),
    "--jobs": (["--jobs=0"], "jobs must be at least 1"),
    "--minutes": (["--minutes=-1"], "minutes finite and at least 0"),
    "--minutes inf": (["--minutes=inf"], "minutes finite and at least 0"),
    "--recipe": (["--recipe=acs-cifar100", "--lr=0.5"], "leave out --recipe or write"),
    "--only": (["--only=b*"], "only must be patterns of names of cells, such as acs*; 'b*' fits none of a"),
    "--threads": (["--threads=0"], "threads must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_flags_beside_study_are_refused(tmp_path, capsys, case):
    words, told = BAD[case]
    assert main(["train", "--study", str(write(tmp_path, "cells: [{name: a}]")), "--runs", str(tmp_path / "runs"), *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_study_is_not_for_torchrun(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "world", lambda: type("World", (), {"size": 2}))
    with pytest.raises(InputError, match="start it without torchrun"):
        study.run_study(write(tmp_path, "cells: [{name: a}]"))


def alive(pid: int) -> bool:
    """Whether `pid` runs; a process that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the children of a process in /proc")
def test_a_study_that_was_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch, one_thread):
    path = write(tmp_path, "seeds: 2\nfloat_seeds: 1\ncells: [{name: a, select: acs}, {name: b, select: rs2, loss: kd}]")
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "fastqat", "train", "--study", str(path), "--jobs=2", "--runs", str(runs)]
    first = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while not (runs / "s/study_s.csv").exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = [int(pid) for pid in Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()]
    first.kill()
    assert first.wait() == -signal.SIGKILL and len(children) >= 2
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in children)
    World(monkeypatch)
    study.run_study(path, runs=runs, say=lambda line: None)
    for run in study.read_study(path, tmp_path / "plain").runs[-2:]:
        plain = train(replace(run.config, resume=False), say=lambda line: None)
        kept = RunFolder(runs / "s" / run.config.run_dir.name).read_summary()
        same = ("test_accuracy", "best_test_accuracy", "float_accuracy", "val_accuracy", "gradient_steps", "unique_samples")
        assert kept is not None and [kept[name] for name in same] == [plain[name] for name in same]
        files = [(folder / run.config.run_dir.name / "metrics.csv") for folder in (runs / "s", tmp_path / "plain/s")]
        a, b = ([(row["train_loss"], row["val_loss"]) for row in rows(file)] for file in files)
        assert a == b and len(a) == 3
