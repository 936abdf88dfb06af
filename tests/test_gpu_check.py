"""The check of a GPU machine, as far as it goes without one: its parts, its time limits, what it says and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastqat._bench import gpu_cases, gpu_check, gpu_timing, registry
from fastqat._bench.gpu_check import Clock, Ended
from fastqat._bench.gpu_summary import summary
from fastqat._bench.measure import measure
from fastqat._errors import InputError

ROOT = Path(__file__).parent.parent


def check(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(
        ["bash", ROOT / "bench/gpu_check.sh", *map(str, arguments)], env=full, capture_output=True, text=True, timeout=300
    )


def test_dry_run_names_the_parts_and_every_test_file(tmp_path: Path) -> None:
    done = check(tmp_path / "out", "--dry")
    assert done.returncode == 0, done.stderr
    assert f"torch {torch.__version__}" in done.stdout and "would run build, tests, static, bench for at most 570 s" in done.stdout
    assert "tests/ops/test_fake_quant.py" in done.stdout and not (tmp_path / "out").exists()


def test_runs_tests_and_tells_which_fail(tmp_path: Path) -> None:
    (tmp_path / "test_good.py").write_text("def test_good():\n    assert True\n")
    (tmp_path / "test_bad.py").write_text("def test_bad():\n    assert False, 'seen'\n")
    (tmp_path / "test_lacking.py").write_text("import hypothesis.missing\n")
    passed = check(tmp_path / "out", "--parts", "tests", "--tests", tmp_path / "test_good.py", CUDA_VISIBLE_DEVICES="")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "No CUDA device is visible" in passed.stdout and "1 runs: 1 passed" in passed.stdout
    failed = check(tmp_path / "out", "--parts", "tests", "bench", "--tests", tmp_path, OUT="ignored", CUDA_VISIBLE_DEVICES="")
    assert failed.returncode == 1
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "test_bad.py: FAILED (1)" in text and "test_lacking.py: not run, hypothesis is not installed" in text
    assert "benchmarks: not run, they need a CUDA device" in text
    assert "seen" in (tmp_path / "out" / "tests.txt").read_text()


def test_a_part_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    child = f"import time; print('child begun', flush=True); time.sleep(300); open({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys; print('parent begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    for seconds in (2, 10, 60):  # a loaded machine may take long to start two interpreters
        ended = gpu_check.run([sys.executable, "-c", code], seconds)
        assert ended.status is None and ended.verdict == "ran out of time"
        if "child begun" in ended.text:
            break
    assert "parent begun" in ended.text and "child begun" in ended.text
    assert not (tmp_path / "alive").exists()  # had the child lived on, its end of the pipe would have been waited for


def test_nothing_is_started_when_no_time_is_left() -> None:
    clock = Clock(0)
    assert clock.most(100) == 0 and gpu_check.run(["false"], clock.most(100)).status is None
    assert Clock(50).most(20) == 20


def test_lines_about_tests() -> None:
    results = {
        "a": Ended(0, 1.0, "3 passed, 1 skipped in 0.1s"),
        "b": Ended(5, 1.0, "no tests ran"),
        "c": Ended(None, 240.0, ""),
        "d": Ended(2, 1.0, "E   ModuleNotFoundError: No module named 'tyro'"),
    }
    assert gpu_check.test_lines(results) == (
        ["4 runs: 3 passed, 1 skipped", "- c: ran out of time after 240 s", "- d: not run, tyro is not installed"],
        False,
    )
    assert gpu_check.missing_package(Ended(2, 1.0, "ModuleNotFoundError: No module named 'fastqat.gone'")) is None


def test_shares_of_a_file_are_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for share in range(3):
        monkeypatch.setenv(gpu_check.SHARE, f"{share}/3")
        items = list(range(10))
        gpu_check.pytest_collection_modifyitems(items)
        seen += items
    assert sorted(seen) == list(range(10))


def test_summary_puts_losses_first() -> None:
    def row(case: str, contender: str, ms: str, **more: str) -> dict[str, str]:
        return {"case": case, "contender": contender, "p50_ms": ms, "absent": "", **more}

    won = [row("won", "fastqat", "1"), row("won", "peer", "2", time_ratio="0.5", goals="≤ 1 × its time: met")]
    lost = [row("lost", "fastqat", "3", gbps="3000", copy_share="0.8")]
    lost += [row("lost", "x.clone()", "2", time_ratio="1.5", goals="≥ 0.9 of its bandwidth: MISSED")]
    lines = summary([*won, *lost]).splitlines()
    assert lines[2:] == [
        "| lost | 3 | 3000 | 80 % |  |  | x.clone() ≥ 0.9 of its bandwidth: MISSED |",
        "| won | 1 |  |  | peer | 0.5 × | met |",
    ]


class WallClockEvent:
    """What `torch.cuda.Event` is to the timers, by the clock of the host."""

    def __init__(self, enable_timing: bool):
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: WallClockEvent) -> float:
        return 1e3 * (end.seconds - self.seconds)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the real thing is there")
@pytest.mark.parametrize("name", ["gpu/backward/group-bf16-64M", "gpu/small/graph-4k", "gpu/small/eager-4k", "gpu/all/training-channel"])
def test_cases_are_measured_where_a_stand_in_plays_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = dict.fromkeys(("synchronize", "_sleep", "reset_peak_memory_stats"), lambda *_: None)
    played = {**idle, "memory_allocated": lambda: 100, "max_memory_allocated": lambda: 1100, "get_device_name": lambda: "stand-in"}
    for attribute, function in {**played, "Event": WallClockEvent}.items():
        monkeypatch.setattr(torch.cuda, attribute, function)
    monkeypatch.setattr(gpu_timing, "_flush_buffer", lambda: torch.empty(10))
    (case,) = (case for case in gpu_cases.CASES if case.name == name)
    rows = measure(case, "small")
    assert rows[0].p50_ms > 0 and rows[0].peak_bytes >= 1000 and {row.device for row in rows} == {"stand-in"}
    assert any(row.goals for row in rows[1:])


def test_cases_that_need_a_device_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = registry.left_out("gpu/step")
    assert names == ["gpu/step/resnet50", "gpu/step/mobilenet_v2", "gpu/step/vit"]
    assert not set(registry.left_out()) & {case.name for case in registry.chosen()}
    with pytest.raises(InputError, match="need a CUDA device, and torch sees none"):
        registry.chosen("gpu/step")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_clocks_of_the_device() -> None:
    x = torch.ones(1 << 26, device="cuda")
    for clock in (gpu_timing.stream, gpu_timing.cold):
        once, thrice = (min(clock(call, 10)) for call in (x.clone, lambda: [x.clone() for _ in range(3)]))
        assert 2 * x.nbytes / 50e12 < once < thrice  # longer than a launch: no memory moves 50 TB/s
