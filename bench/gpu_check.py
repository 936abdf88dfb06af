"""Runs everything there is to run on a CUDA machine and leaves a summary: called by ``gpu_check.sh``; needs no package beside torch's.

Written into the folder: summary.md (the short table), gpu.csv (rows as in bench/results), tests.txt, static.txt, build.txt, bench.txt.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("triton", "pytest", "hypothesis", "pybind11", "ninja", "rich", "tyro", "yaml", "safetensors", "sklearn", "torchvision")
BENCHES = (
    "gpu/forward",
    "gpu/backward",
    "gpu/small",
    "gpu/all",
    "gpu/logit_scores",
    "gpu/feature_kl",
    "gpu/norms",
    "gpu/step",
    "gpu/lsq",
)  # longest last
SHARE, SHARES = "FASTQAT_CHECK_SHARE", 4
FACTS = """
import platform, torch
print(f"Python {platform.python_version()}, torch {torch.__version__}")
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    print(f"{p.name}, sm_{p.major}{p.minor}, {p.multi_processor_count} multiprocessors, {p.total_memory / 2**30:.0f} GiB")
"""
# not through the command line, which needs tyro
MEASURE = "import sys; from pathlib import Path; from bench.run import main; main(quick=True, filter=sys.argv[1], out=Path(sys.argv[2]))"


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status (None: it ran out of time), seconds, and what it printed."""

    status: int | None
    seconds: float
    text: str

    @property
    def verdict(self) -> str:
        return "ran out of time" if self.status is None else "passed" if self.status == 0 else f"FAILED ({self.status})"


class Clock:
    """The time that all parts together have left."""

    def __init__(self, seconds: float):
        self.start, self.end = time.monotonic(), time.monotonic() + seconds

    def most(self, seconds: float) -> float:
        """`seconds`, or what is left."""
        return max(0.0, min(seconds, self.end - time.monotonic()))


def run(command: Sequence[str], seconds: float, **environment: str) -> Ended:
    """Run a command of the repository for at most `seconds`; it and all that it started are then ended."""
    start = time.monotonic()
    if seconds < 1:
        return Ended(None, 0.0, "no time was left\n")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    full = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **environment}
    process = subprocess.Popen(
        command, cwd=ROOT, env=full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    try:
        text, _ = process.communicate(timeout=seconds)
        return Ended(process.returncode, time.monotonic() - start, text)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        return Ended(None, time.monotonic() - start, text)


def build(clock: Clock, arch: str | None) -> Ended:
    """Build in place: for this device's architecture only, where there is one."""
    environment = {"FASTQAT_CUDA_ARCHS": arch} if arch and "FASTQAT_CUDA_ARCHS" not in os.environ else {}
    return run([sys.executable, "setup.py", "build_ext", "--inplace"], clock.most(240), **environment)


def test_files(chosen: Sequence[str]) -> list[str]:
    """The test files below `chosen`, and the package itself for its examples."""
    files = [path for name in chosen for path in ([ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("test_*.py")))]
    return [os.path.relpath(path, ROOT) for path in files] + [name for name in chosen if name == "fastqat"]


def pytest_collection_modifyitems(items: list[object]) -> None:
    """As a plugin of pytest, keep one share of the tests of a file: every SHARES-th."""
    share, shares = map(int, os.environ.get(SHARE, "0/1").split("/"))
    items[:] = items[share::shares]


def tests(clock: Clock, files: Sequence[str], device: bool) -> dict[str, Ended]:
    """A process per file, as many at a time as there are cores but two, longest first: a file that hangs costs only itself.

    On a device every test of an operator may compile a kernel, so their files are cut into shares.
    """

    def one(job: tuple[str, str]) -> Ended:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "bench.gpu_check", "-rfE", "--tb=short", job[0]]
        return run(command, clock.most(300), OMP_NUM_THREADS="2", **{SHARE: job[1]})

    first, rest = ([file for file in files if file.startswith("tests/ops/") == wanted] for wanted in (True, False))
    shares = SHARES if device else 1
    jobs = [(file, f"{i}/{shares}") for i in range(shares) for file in first] + [(file, "0/1") for file in rest]
    with ThreadPoolExecutor(max(2, (os.cpu_count() or 2) - 2)) as pool:
        names = [file if share == "0/1" else f"{file} [{share}]" for file, share in jobs]
        return dict(zip(names, pool.map(one, jobs), strict=True))


def missing_package(ended: Ended) -> str | None:
    """The package without which a test file could not even be read."""
    if ended.status != 2:
        return None
    found = re.search(r"ModuleNotFoundError: No module named '(\w+)", ended.text)
    return found[1] if found and found[1] in NEEDED else None


def test_lines(results: dict[str, Ended]) -> tuple[list[str], bool]:
    """What to say of the tests, and whether all passed. A file without a test (5) is none; one whose package is missing is told."""
    counts: dict[str, int] = {}
    told = []
    passed = True
    for file, ended in results.items():
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", ended.text[-2000:]):
            counts[word] = counts.get(word, 0) + int(number)
        package = missing_package(ended)
        if package:
            told.append(f"- {file}: not run, {package} is not installed")
        elif ended.status not in (0, 5):
            passed = False
            told.append(f"- {file}: {ended.verdict} after {ended.seconds:.0f} s")
    return [f"{len(results)} runs: " + ", ".join(f"{n} {word}" for word, n in counts.items()), *told], passed


def benches(clock: Clock, out: Path) -> list[str]:
    """Measure the cases for a GPU, group after group; returns what to say of each."""
    told = []
    for name in BENCHES:
        ended = run([sys.executable, "-c", MEASURE, name, str(out / "gpu.csv")], clock.most(150))
        with (out / "bench.txt").open("a") as log:
            log.write(ended.text)
        told.append(f"- {name}: {ended.verdict.replace('passed', 'measured')} in {ended.seconds:.0f} s")
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 0 when the build, the static report and every test passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path(os.environ.get("OUT") or "gpu_check"), help="folder for the results")
    parser.add_argument("--seconds", type=float, default=570, help="what all parts together may take")
    parser.add_argument("--tests", nargs="+", default=["tests", "fastqat"], help="files and folders that are tested")
    parser.add_argument("--parts", nargs="+", default=["build", "tests", "static", "bench"], choices=["build", "tests", "static", "bench"])
    parser.add_argument("--archs", nargs="+", default=[], help="for the static report; default: the device's, else 90")
    parser.add_argument("--dry", action="store_true", help="only say what would be run")
    options = parser.parse_args(arguments)
    out, clock = options.out.resolve(), Clock(options.seconds)
    facts = run([sys.executable, "-c", FACTS], clock.most(60)).text
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    print(facts, f"missing packages: {', '.join(missing) or 'none'}", sep="", flush=True)
    if options.dry:
        print(f"would run {', '.join(options.parts)} for at most {options.seconds:g} s:", *test_files(options.tests), sep="\n  ")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    check = Check(out, clock, facts, missing)
    check.all(options.parts, options.tests, options.archs)
    text = "\n".join(["# GPU check", "", facts, f"missing packages: {', '.join(missing) or 'none'}", "", *check.told, ""])
    (out / "summary.md").write_text(text)
    return 0 if check.passed else 1


class Check:
    """The parts in turn; each writes its log and adds to what is told."""

    def __init__(self, out: Path, clock: Clock, facts: str, missing: Sequence[str]):
        self.out, self.clock, self.missing = out, clock, missing
        arch = re.search(r"sm_(\d+)", facts)
        self.arch = arch[1] if arch else None
        self.told: list[str] = []
        self.passed = True

    def say(self, *lines: str) -> None:
        self.told += lines
        print(*lines, sep="\n", flush=True)

    def all(self, parts: Sequence[str], chosen: Sequence[str], archs: Sequence[str]) -> None:
        if self.arch is None:
            self.say("No CUDA device is visible to torch: what needs none is run.")
        if "build" in parts:
            self.part("build", build(self.clock, self.arch), "build.txt")
        command = [sys.executable, "-m", "bench.static_report", "--archs", *(archs or [self.arch or "90"])]
        with ThreadPoolExecutor(1) as beside:
            static = beside.submit(run, command, self.clock.most(300), TRITON_INTERPRET="0") if "static" in parts else None
            if "tests" in parts:
                self.tests(chosen)
            if static is not None:
                self.part("static report", static.result(), "static.txt")
        if "bench" in parts:
            self.benches()

    def part(self, name: str, ended: Ended, log: str) -> None:
        (self.out / log).write_text(ended.text)
        self.passed &= ended.status == 0
        self.say(f"## {name}: {ended.verdict} in {ended.seconds:.0f} s, see {log}")

    def tests(self, chosen: Sequence[str]) -> None:
        if "pytest" in self.missing:
            self.passed = False
            self.say("## tests: not run, pytest is not installed; give a folder of wheels as WHEELS")
            return
        results = tests(Clock(self.clock.most(300)), test_files(chosen), self.arch is not None)  # the rest is for the benchmarks
        lines, passed = test_lines(results)
        bad_first = sorted(results.items(), key=lambda item: item[1].status == 0)
        (self.out / "tests.txt").write_text("\n".join(f"==== {file}\n{ended.text}" for file, ended in bad_first))
        self.passed &= passed
        self.say(f"## tests: {'passed' if passed else 'FAILED'}, see tests.txt", *lines)

    def benches(self) -> None:
        if self.arch is None:
            self.say("## benchmarks: not run, they need a CUDA device")
            return
        self.say("## benchmarks", *benches(self.clock, self.out))
        self.say("", run([sys.executable, "-m", "bench.gpu_summary", str(self.out / "gpu.csv")], self.clock.most(30)).text)


if __name__ == "__main__":
    sys.exit(main())
