"""The benchmarks themselves: cases are consistent, contenders agree, the clock and the memory meter measure what they say."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastqat._bench import plot, run
from fastqat._bench.agreement import disagreements
from fastqat._bench.case import Case, Contender, Goal, Work, never
from fastqat._bench.machine import this_machine
from fastqat._bench.measure import EFFORT, measure, prepare
from fastqat._bench.memory import held_bytes, peak_bytes
from fastqat._bench.registry import CASES, chosen
from fastqat._bench.rows import Measured, append_rows, read_rows, rows_of
from fastqat._bench.timing import interleaved
from fastqat._errors import DataError, InputError

COMPILES = "compiled LSQ"  # takes seconds to build: `pytest bench` compares it too


class Vector:
    """Inputs of `DOUBLE`."""

    def __init__(self, size: str):
        self.x = torch.ones({"full": 4096, "quick": 1024, "small": 16}[size])


DOUBLE = Case(
    "double/vector",
    "2·x",
    Vector,
    Contender("fastqat", lambda inputs: Work(lambda: {"y": inputs.x + inputs.x})),
    (
        Contender("x.clone()", lambda inputs: Work(lambda: {"copy": inputs.x.clone()}, moved=2 * inputs.x.nbytes), agrees=()),
        Contender("product", lambda inputs: Work(lambda: {"y": 2 * inputs.x})),
        Contender("gone", lambda inputs: Work(dict), reason=never("it is not installed")),
        Contender("broken", lambda inputs: Work(lambda: {"y": inputs.missing})),
    ),
    moved=lambda inputs: 2 * inputs.x.nbytes,
    goals=(Goal("product", 1e9), Goal("product", 1e-9), Goal("product", 1.0, "memory")),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contenders_agree_and_bytes_are_positive(case: Case) -> None:
    inputs = case.setup("small")
    fast = replace(case, peers=tuple(peer for peer in case.peers if peer.name != COMPILES))
    results = {name: work.call() for name, work in prepare(fast, inputs)[0].items()}
    ours = results[case.candidate.name]
    for contender in fast.peers:
        if contender.name in results:
            assert disagreements(case, contender, ours, results[contender.name]) == []
    assert case.moved is None or case.moved(inputs) > 0


def test_registry_is_consistent() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        names = [contender.name for contender in case.contenders]
        assert len(set(names)) == len(names)
        assert {goal.peer for goal in case.goals} <= set(names[1:])
    families = {case.name.partition("/")[0] for case in chosen(quick=True)}
    assert families == {"fake_quantize", "lsq", "step", "logit_scores", "scoring_pass"}


def test_choice_by_name() -> None:
    assert [case.name for case in chosen("lsq/bf16", quick=True)] == ["lsq/bf16"]
    with pytest.raises(InputError, match="no benchmark has 'nothing'"):
        chosen("nothing")


def test_a_wrong_peer_is_found() -> None:
    wrong = Contender("wrong", lambda inputs: Work(lambda: {"y": inputs.x}))
    (told,) = disagreements(DOUBLE, wrong, {"y": torch.full((3,), 2.0)}, {"y": torch.full((3,), 2.1)})
    assert "y of wrong differs by 0.05" in told
    assert disagreements(DOUBLE, wrong, {"y": torch.ones(3)}, {"y": torch.tensor([1, 1, torch.nan])}) != []
    assert disagreements(DOUBLE, wrong, {"y": torch.ones(3)}, {"z": torch.ones(3)}) != []


def test_memory_meter_on_a_known_case() -> None:
    def call() -> torch.Tensor:
        a = torch.empty(1000, 1000)
        b = torch.empty(500, 1000)
        del a
        return torch.cat([b, b])

    assert peak_bytes(call) == 6_000_000
    assert peak_bytes(call, held=1000) == 6_001_000


def test_memory_meter_counts_what_autograd_keeps() -> None:
    x = torch.ones(1000, 250, requires_grad=True)
    assert peak_bytes(lambda: x.exp().exp().exp()) == 3 * x.nbytes
    assert peak_bytes(lambda: x.detach().exp().exp().exp()) == 2 * x.nbytes


def test_held_bytes_counts_a_storage_once() -> None:
    x = torch.zeros(10)
    assert held_bytes([x, x[:3], torch.zeros(5)]) == 60


def test_timing_tells_slow_from_fast() -> None:
    x = torch.ones(200, 200)
    times = interleaved({"one": lambda: x @ x, "twenty": lambda: [x @ x for _ in range(20)]}, budget=0.0, least_rounds=5)
    assert len(times["one"]) == len(times["twenty"]) == 5
    assert np.median(times["twenty"]) > 4 * np.median(times["one"])


def test_rows_of_a_case() -> None:
    rows = {row.contender: row for row in measure(DOUBLE, "small")}
    assert list(rows) == ["fastqat", "x.clone()", "product", "gone", "broken"]
    assert rows["gone"].absent == "it is not installed"
    assert rows["broken"].absent.startswith("fails here: AttributeError")
    assert rows["x.clone()"].copy_share == 1 and rows["fastqat"].peak_bytes == 64
    assert rows["product"].goals == "≤ 1e+09 × its time: met; ≥ 1e+09 × faster: MISSED; ≤ 1 × its peak bytes: met"
    assert rows["fastqat"].time_ratio is None and rows["product"].p20_ms <= rows["product"].p50_ms <= rows["product"].p80_ms


def test_ratio_pairs_the_rounds() -> None:
    measured = {"fastqat": Measured(np.array([1.0, 10.0, 1.0])), "product": Measured(np.array([2.0, 20.0, 2.0]))}
    assert rows_of(DOUBLE, Vector("small"), "small", "bench", measured, {})[2].time_ratio == 0.5


def test_an_error_of_the_candidate_is_raised() -> None:
    with pytest.raises(AttributeError):
        measure(replace(DOUBLE, candidate=DOUBLE.peers[3]), "small")


def test_main_appends_rows_that_plot_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "chosen", lambda pattern, quick: [DOUBLE])
    monkeypatch.setitem(EFFORT, "quick", (0.0, 2))
    out = tmp_path / "rows.csv"
    for _ in range(2):
        run.main(quick=True, out=out)
    with out.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 10 and rows[0]["torch"] == torch.__version__ and rows[0]["threads"] == str(torch.get_num_threads())
    assert "it is not installed" in capsys.readouterr().out
    assert len(plot.latest(read_rows([out]))["double/vector"]) == 3
    assert plot.main([str(out), str(tmp_path / "speed.png")]) == 0
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_rows_are_not_added_to_another_table(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="other columns"):
        append_rows(tmp_path / "other.csv", [], this_machine())


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="threads must be at least 1"):
        run.main(threads=0)
    assert plot.main([]) == 2
