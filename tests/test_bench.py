"""The benchmarks themselves: cases are consistent, contenders agree, the clock and the memory meter measure what they say."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastqat import use_backend
from fastqat._bench import fake_quant_cases, norm_cases, norm_peers, plot, run, step_cases, step_peers
from fastqat._bench.agreement import disagreements
from fastqat._bench.case import Case, Contender, Goal, Work, never
from fastqat._bench.machine import this_machine
from fastqat._bench.measure import EFFORT, measure, prepare
from fastqat._bench.memory import held_bytes, peak_bytes
from fastqat._bench.registry import CASES, chosen
from fastqat._bench.rows import Amounts, Measured, amounts_of, append_rows, read_rows, rows_of
from fastqat._bench.timing import interleaved
from fastqat._errors import DataError, InputError
from fastqat.nn.layer import QuantLayer

COMPILES = "compiled"  # contenders of this name take seconds to build: `pytest bench` compares them too


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
    goals=(Goal("product", 1e9), Goal("product", 1e-9), Goal("product", 1.0, "memory"), Goal("x.clone()", 1e-3, "share")),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contenders_agree_and_bytes_are_positive(case: Case) -> None:
    inputs = case.setup("small")
    fast = replace(case, peers=tuple(peer for peer in case.peers if not peer.name.startswith(COMPILES)))
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
    families = {case.name.partition("/")[0] for case in chosen(quick=True) if case.device == "cpu"}
    assert families >= {"forward", "backward", "lsq", "step", "logit_scores", "scoring_pass"}


def test_choice_by_name() -> None:
    assert [case.name for case in chosen("lsq/bf16", quick=True)] == ["lsq/bf16-1M"]
    with pytest.raises(InputError, match="no benchmark has 'nothing'"):
        chosen("nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cases_for_a_gpu_are_left_out_without_one() -> None:
    assert all(case.device == "cpu" for case in chosen())
    if any(case.device == "cuda" for case in CASES):
        with pytest.raises(InputError, match="need a CUDA device"):
            chosen("gpu/")


@pytest.mark.parametrize("case", fake_quant_cases.CASES, ids=lambda case: case.name)
def test_one_pass_alone_gives_what_the_reference_gives(case: Case) -> None:
    inputs = case.setup("small")
    got = case.candidate.make(inputs).call()
    with use_backend("reference"):
        want = case.candidate.make(inputs).call()
    assert set(got) == set(want) and not any(torch.equal(value, inputs.x) for value in got.values())
    for name in got:
        error = (got[name].double() - want[name].double()).abs().max()
        assert error <= (1e-5 * want[name].abs().max() if name == "grad_scale" else 0), name


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit"])
def test_networks_of_brevitas_quantize_every_layer(name: str) -> None:
    pytest.importorskip("brevitas")
    from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer

    inputs = single_precision(name)
    quantized = inputs.quantized()
    model = step_peers.brevitas_copy(quantized)
    theirs = [layer for layer in model.modules() if isinstance(layer, QuantWeightBiasInputOutputLayer)]
    ours = [layer for layer in quantized.modules() if isinstance(layer, QuantLayer)]
    assert len(theirs) == len(ours) >= 4
    for own, other in zip(ours, theirs, strict=True):
        codes = other.quant_weight().int()
        assert torch.equal(own.weight, other.weight) and int(codes.min()) >= -8 and int(codes.max()) <= 7
    before = [other.weight.detach().clone() for other in theirs]
    assert step_cases.step_of(lambda _: model)(inputs).call()["loss"].isfinite()
    assert not any(torch.equal(was, other.weight) for was, other in zip(before, theirs, strict=True))


def test_networks_of_torchao_quantize_linear_layers_only() -> None:
    pytest.importorskip("torchao")
    inputs = single_precision("vit")
    model = step_peers.torchao_copy(inputs.quantized(), inputs.x)
    assert step_cases.step_of(lambda _: model)(inputs).call()["loss"].isfinite()
    assert any(path.endswith("weight_fake_quantizer.scale") for path, _ in model.named_parameters())
    with pytest.raises(TypeError, match="linear layers only"):
        step_peers.torchao_copy(single_precision("resnet18").quantized(), inputs.x)


def test_backpack_takes_a_grouped_convolution_for_a_dense_one() -> None:
    pytest.importorskip("backpack")
    inputs = norm_cases.MOBILENET_V2.setup("small")
    want = norm_peers.one_by_one(inputs.model, inputs.x, inputs.y)()
    got = norm_cases.peer(norm_peers.backpack_l2)(inputs).call()["sq_norm"]
    assert (got - want).norm() > 0.01 * want.norm()  # when this fails, it belongs to those that must agree: bench/norm_cases.py


def single_precision(name: str) -> step_cases.Inputs:
    """The small inputs of a step case as fp32, which other packages insist on."""
    inputs = next(case for case in step_cases.CASES if case.name == f"step/{name}").setup("small")
    return step_cases.Inputs(inputs.model.float(), inputs.x.float(), inputs.y)


def test_a_quick_run_leaves_out_what_takes_long_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EFFORT, "quick", (0.0, 2))
    slow = replace(DOUBLE, peers=(replace(DOUBLE.peers[1], quick=False), DOUBLE.peers[0]))
    shown = {size: [row.contender for row in measure(slow, size)] for size in ("quick", "small")}
    assert shown == {"quick": ["fastqat", "x.clone()"], "small": ["fastqat", "product", "x.clone()"]}


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
    times = interleaved({"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.03)}, budget=0.0, least_rounds=5)
    assert len(times["short"]) == len(times["long"]) == 5
    assert np.median(times["long"]) > 4 * np.median(times["short"])


def test_rows_of_a_case() -> None:
    rows = {row.contender: row for row in measure(DOUBLE, "small")}
    assert list(rows) == ["fastqat", "x.clone()", "product", "gone", "broken"]
    assert rows["gone"].absent == "it is not installed"
    assert rows["broken"].absent.startswith("fails here: AttributeError")
    assert rows["x.clone()"].copy_share == 1 and rows["fastqat"].peak_bytes == 64
    assert rows["product"].goals == "≤ 1e+09 × its time: met; ≥ 1e+09 × faster: MISSED; ≤ 1 × its peak bytes: met"
    assert rows["x.clone()"].goals == "≥ 0.001 of its bandwidth: met" and rows["fastqat"].device == "cpu"
    assert rows["fastqat"].time_ratio is None and rows["product"].p20_ms <= rows["product"].p50_ms <= rows["product"].p80_ms


def test_ratio_pairs_the_rounds() -> None:
    measured = {"fastqat": Measured(np.array([1.0, 10.0, 1.0])), "product": Measured(np.array([2.0, 20.0, 2.0]))}
    assert rows_of(DOUBLE, amounts_of(DOUBLE, Vector("small")), "small", "bench", measured, {})[2].time_ratio == 0.5


def test_share_is_bytes_over_time_against_the_copy() -> None:
    measured = {"fastqat": Measured(np.array([4.0, 40.0, 4.0])), "x.clone()": Measured(np.array([2.0, 20.0, 2.0]), moved=400)}
    case = replace(DOUBLE, goals=(Goal("x.clone()", 0.75, "share"), Goal("x.clone()", 0.7, "share")))
    ours, copy, *_ = rows_of(case, Amounts(600, None), "small", "bench", measured, {})
    assert ours.copy_share == 0.75 and copy.copy_share == 1
    assert copy.goals == "≥ 0.75 of its bandwidth: met; ≥ 0.7 of its bandwidth: met"
    assert "MISSED" in rows_of(case, Amounts(599, None), "small", "bench", measured, {})[1].goals


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


def test_rows_from_before_a_column_stay_readable(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    rows = measure(DOUBLE, "small")
    append_rows(out, rows, this_machine())
    with out.open(newline="") as handle:
        full = list(csv.reader(handle))
    out.write_text("\n".join(",".join(line[:-1]) for line in full[:3]) + "\n")
    append_rows(out, rows[:1], this_machine())
    read = read_rows([out])
    assert [row["device"] for row in read] == ["", "", "cpu"]
    assert [row["contender"] for row in read] == ["fastqat", "x.clone()", "fastqat"]


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="threads must be at least 1"):
        run.main(threads=0)
    assert plot.main([]) == 2
