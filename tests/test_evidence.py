"""Studies read back, compared and shown: what bench/evidence.md says is what the rows say."""

from __future__ import annotations

import doctest
import math
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from fastqat._bench import evidence, paired, study_cost, study_groups, study_look, study_rows, study_words
from fastqat._bench.markers import KINDS
from fastqat._bench.paired import BETTER, NOT_WORSE, WORSE
from fastqat._bench.study_cost import costs
from fastqat._bench.study_figures import Evidence, draw_all
from fastqat._bench.study_groups import Comparison, difference, groups_of, labels, reference_of, usual
from fastqat._bench.study_plans import plans_in
from fastqat._bench.study_rows import Row, read_studies
from fastqat._bench.study_tables import cells_table, coverage_table, matrix_table, seconds_table
from fastqat._errors import InputError
from tests.made_studies import curve_of, made, rows_of, write

HOW = Comparison()
LARGEST = 80 * 1024  # bytes of a picture that is kept in the repository


@pytest.mark.parametrize("module", [evidence, paired, study_cost, study_groups, study_look, study_words])
def test_examples(module: object) -> None:
    assert not doctest.testmod(module).failed  # type: ignore[arg-type]  # a module of bench, given by name


def test_the_page_shows_the_rows_that_are_kept() -> None:
    text, rows = evidence.PAGE.read_text(encoding="utf-8"), Evidence.read(evidence.RESULTS)
    assert evidence.filled(text, rows) == text, "run python -m bench.evidence tables"
    kept = {path.name for path in evidence.FIGURES.glob("*.png")}
    due = {f"{study}_{name}.png" for study in rows.names for name in rows.drawings(study)}
    assert kept == due, "run python -m bench.evidence figures"
    assert all(path.stat().st_size < LARGEST for path in evidence.FIGURES.glob("*.png"))


def test_difference_is_paired_by_seed_and_clustered_by_float_model() -> None:
    study = made("s", rows_of("rs2", 0.0, 6), rows_of("acs", 1.0, 6, select="acs")[1:])
    found = difference(study, "acs", "rs2")
    assert found is not None and (found.pairs, found.clusters) == (5, 3)
    assert 0.7 < found.mean < 1.3 and found.half < 0.7  # the float models are points apart
    other = made("s", rows_of("rs2", 0.0, 2), rows_of("acs", 1.0, 4, select="acs")[2:])
    assert difference(other, "acs", "rs2") is None


def test_a_seed_that_stands_twice_and_one_that_is_not_finished() -> None:
    rows = rows_of("rs2", 0.0, 2)
    study = made("s", rows, [{**rows[0], "test_accuracy": "0.5"}, {**rows[1], "seed": "7", "test_accuracy": ""}])
    assert study.numbers("rs2", "test_accuracy")[0] == 0.5 and set(study.cells["rs2"]) == {"0", "1"}


def test_cells_are_compared_within_their_context() -> None:
    full = [rows_of(f"full-{loss}", 2.0, loss=loss, select="none", fraction=1.0) for loss in ("ce", "kd")]
    tenth = [
        rows_of(f"{way}-{loss}-{f}", 0.0, loss=loss, select=way, fraction=f)
        for loss in ("ce", "kd")
        for f in (0.1, 0.3)
        for way in ("rs2", "acs")
    ]
    study = made("s", *full, *tenth)
    groups = groups_of(study, HOW)
    assert [group.cells for group in groups[:2]] == [["full-ce", "rs2-ce-0.1", "acs-ce-0.1"], ["full-ce", "rs2-ce-0.3", "acs-ce-0.3"]]
    assert [group.references for group in groups] == [["rs2-ce-0.1"], ["rs2-ce-0.3"], ["rs2-kd-0.1"], ["rs2-kd-0.3"]]
    assert reference_of(study, groups[3], "full-kd") == "rs2-kd-0.3" and reference_of(study, groups[3], "rs2-kd-0.3") is None
    losses = groups_of(study, Comparison.of({"loss": "ce"}))
    assert [group.cells for group in losses][:2] == [["full-ce", "full-kd"], ["rs2-ce-0.1", "rs2-kd-0.1"]]
    alone = made("s", *tenth, rows_of("other", 0.0, loss="kd_clc"))
    assert "other" not in [cell for group in groups_of(alone, HOW) for cell in group.cells]


def test_the_reference_shares_most_settings() -> None:
    cells = [rows_of(f"{way}-{bn}", 0.0, select=way, bn_reestimate=bn) for bn in (0, 20) for way in ("rs2", "acs")]
    study = made("s", *cells, rows_of("random", 0.0, select="random", bn_reestimate=20, interval=5))
    group = groups_of(study, HOW)[0]
    assert reference_of(study, group, "acs-20") == "rs2-20" and reference_of(study, group, "acs-0") == "rs2-0"
    named = labels(study, group, HOW)
    assert named["acs-20"] == "acs, bn reestimate 20" and named["random"] == "random"
    scored = made("s", rows_of("ds", 0.0, select="topk", score="ds"), rows_of("rs2", 0.0, score="evs"))
    assert labels(scored, groups_of(scored, HOW)[0], HOW) == {"ds": "topk, ds", "rs2": "rs2"}
    twins = made("s", rows_of("a", 0.0, select="acs"), rows_of("b", 0.0, select="acs"), rows_of("rs2", 0.0))
    assert labels(twins, groups_of(twins, HOW)[0], HOW) == {"a": "a", "b": "b", "rs2": "rs2"}


def test_usual_reference() -> None:
    assert usual(made("s", rows_of("a", 0.0, select="acs"), rows_of("b", 0.0, select="random"))) == Comparison(reference="random")
    assert usual(made("s", rows_of("a", 0.0, select="acs"))) is None


def test_cells_table() -> None:
    cells = [
        rows_of("full", 0.5, select="none"),
        rows_of("rs2", 0.0),
        rows_of("acs", 1.5, select="acs"),
        rows_of("topk", -1.5, select="topk"),
    ]
    lines = cells_table(made("s", *cells), HOW).splitlines()
    assert "Study `s` (a CPU, threads a run: 1, torch 2.13.0; 20 runs, 0.4 hours of quantized training)." in lines[0]
    assert "the 2 comparisons here" in lines[0]
    said = {line.split(" | ")[0].strip("| "): line.split(" | ")[4] for line in lines[4:8]}
    assert said == {"all data": BETTER, "rs2": "reference", "acs": rf"{BETTER} \*", "topk": rf"{WORSE} \*"}
    assert lines[5].endswith("| – | 5 (3) | reference | 700 | 900 | 4,500 | 80 | 10 % |")
    assert lines[-1].startswith("All data is less than 1 point ahead of the reference, so that there is little to win: this study (+0.")


def test_verdicts_are_starred_by_family() -> None:
    many = [rows_of(f"acs{i}", 0.0, select="acs", interval=i) for i in range(8)]
    text = cells_table(made("s", rows_of("rs2", 0.0, 12), rows_of("ds", 0.1, 12, select="ds"), *many), HOW, cost=False)
    assert NOT_WORSE in text and "steps" not in text


def test_matrix_table() -> None:
    cells = [rows_of(f"{way}-{f}", gain, select=way, fraction=f) for f in (0.3, 0.1) for way, gain in (("rs2", 0.0), ("acs", -2.0))]
    lines = matrix_table(made("s", *cells, rows_of("full", 3.0, select="none", fraction=1.0)), HOW, "fraction").splitlines()
    assert lines[2] == "| way | 10 % | 30 % |"
    assert lines[5].startswith("| acs | ") and lines[5].count("▼") == 2
    assert lines[6].startswith("| all data | ") and lines[6].count("▲") == 2


def test_seconds_table() -> None:
    cells = {
        50: rows_of("full", 1.0, 3, select="none", gradient_steps=4000),
        20: rows_of("short", 1.5, 3, select="none", epochs=2, gradient_steps=400),
        10: rows_of("rs2", 3.0, 3),
        9: rows_of("acs", -9.0, 3, select="acs"),
    }
    curves = [row for pace, rows in cells.items() for one in rows for row in curve_of(one, pace)]
    study = study_rows.study_of("s", [row for rows in cells.values() for row in rows], curves)
    lines = seconds_table(study, HOW).splitlines()[4:]
    assert lines[1].startswith("| all data, 2 epochs | 3 of 3 | 7") and lines[1].endswith(" | 20 | 1.00 |")
    assert lines[2].startswith("| rs2 | 3 of 3 | 2") and lines[2].endswith(" | 10 | 0.37 |")
    assert lines[3] == "| acs | 0 of 3 | – | 9 | – |"
    assert "no curves" in seconds_table(made("s", cells[10], cells[9]), HOW)


def curve(cell: str, epoch: float, looks: int, need: float) -> list[Row]:
    """A curve that looks every `epoch` seconds and learns with a time constant of `need` seconds."""
    ends = [epoch * (look + 1) for look in range(looks)]
    return [
        {"cell": cell, "seed": "0", "epoch": str(i), "seconds": str(end), "val_accuracy": str(0.8 - 0.3 * math.exp(-end / need))}
        for i, end in enumerate(ends)
    ]


@pytest.mark.parametrize("between", [1, 2])
def test_cells_that_need_the_same_time_have_the_ratio_1_however_often_they_are_looked_at(between: int) -> None:
    rows = [*rows_of("full", 1.0, 1, select="none"), *rows_of("rs2", 0.0, 1)]
    looked = [*curve("full", 100 * between, 24 // between, 150), *curve("rs2", 10, 60, 150)]
    study = study_rows.study_of("s", rows, looked)
    found = costs(study, groups_of(study, HOW)[0])["rs2"]
    assert found.sign == "" and found.ratios == [pytest.approx(1, abs=0.1)] and found.gap == 10


def test_what_is_reached_before_the_first_look_is_a_bound() -> None:
    rows = [*rows_of("full", 1.0, 1, select="none"), *rows_of("rs2", 0.0, 1), *rows_of("fast", 0.0, 1, select="acs")]
    looked = [*curve("full", 100, 24, 20), *curve("rs2", 10, 40, 20), *curve("fast", 200, 2, 20)]
    study = study_rows.study_of("s", rows, looked)
    found = costs(study, groups_of(study, HOW)[0])
    assert {cell: cost.sign for cell, cost in found.items()} == {"full": "", "rs2": ">", "fast": "?"}
    lines = seconds_table(study, HOW).splitlines()
    assert lines[4] == "| all data | 1 of 1 | < 100 | 100 | 1.00 |" and lines[5].endswith("| 10 | > 0.73 |")
    assert lines[6] == "| acs | 1 of 1 | < 200 | 200 | not told by the looks |"
    assert "There is none of about a quarter of it (5 epochs) or a tenth of it (2 epochs)" in lines[0]


def test_an_accuracy_that_does_not_last_is_not_reached() -> None:
    rows = [{"seconds": str(10 * i), "val_accuracy": str(value)} for i, value in enumerate((0.5, 0.7, 0.5, 0.7, 0.8), start=1)]
    assert study_cost.reached(rows, 0.6) == study_cost.Reached(pytest.approx(35.0))


def test_a_short_run_on_all_data_is_no_full_length() -> None:
    short = rows_of("full2", 0.3, 5, select="none", epochs=2, gradient_steps=70)
    text = cells_table(made("s", rows_of("rs2", 0.0), rows_of("acs", 0.3, select="acs"), short), HOW, cost=False)
    assert "| all data, 2 epochs | " in text and "little to win" not in text
    assert text.splitlines()[-1] == "Not known, for lack of all data at full length, whether there is anything to win: this study."
    assert "Not known" not in cells_table(made("s", rows_of("kd", 0.0, loss="kd"), rows_of("ce", 0.0)), Comparison.of({"loss": "kd"}))


def test_all_data_at_the_budget_of_a_fraction_is_compared_there_alone() -> None:
    parts = [rows_of(f"{way}-{f}", 0.0, select=way, fraction=f, gradient_steps=7000 * f) for f in (0.1, 0.3) for way in ("rs2", "acs")]
    full = [rows_of(f"full{e}", e / 10, select="none", fraction=1.0, epochs=e, gradient_steps=350 * e) for e in (2, 6, 20)]
    study = made("s", *parts, *full)
    assert [group.cells[2:] for group in groups_of(study, HOW)] == [["full2", "full20"], ["full6", "full20"]]
    text = cells_table(study, HOW, cost=False)
    assert "over the 4 comparisons here" in text and text.count("| all data, about as many steps (1.00 ×) |") == 2
    assert matrix_table(study, HOW, "fraction").count("| all data, about as many steps |") == 1


def test_verdicts_of_one_float_model_are_about_that_model() -> None:
    rows = [rows_of("rs2", 0.0), rows_of("acs", 1.5, select="acs")]
    one = [[{**row, "float_seed": "0", "float_accuracy": "0.8"} for row in part] for part in rows]
    text = cells_table(made("s", *one), HOW, cost=False)
    assert f"| 5 (1) | {BETTER}, this float model |" in text and "say nothing about others" in text


def test_pairs_start_from_one_float_model() -> None:
    rs2, acs = rows_of("rs2", 0.0, 3), rows_of("acs", 1.0, 3, select="acs")
    for change in ({"float_seed": "9"}, {"float_accuracy": "0.81"}):
        with pytest.raises(InputError, match="acs and rs2 of seed 2 started from different float models"):
            difference(made("s", rs2, [*acs[:2], {**acs[2], **change}]), "acs", "rs2")
    named = [[{**row, "float_model": model} for row in rows] for rows, model in ((rs2, "c0ffee00"), (acs, "c0ffee01"))]
    with pytest.raises(InputError, match="float_model c0ffee01 and c0ffee00"):
        difference(made("s", *named), "acs", "rs2")
    same = [[{**row, "float_model": "c0ffee00"} for row in rs2], [{**row, "float_model": "c0ffee00", "float_seed": "9"} for row in acs]]
    assert difference(made("s", *same), "acs", "rs2").clusters == 1  # type: ignore[union-attr]  # they share seeds


def test_commits_are_named_where_there_are_several() -> None:
    rows = [rows_of("rs2", 0.0, 2), [{**row, "commit": "b" * 40} for row in rows_of("acs", 0.0, 2, select="acs")]]
    assert "4 runs, of commits bbbbbbb (2), c (2), " in cells_table(made("s", *rows), HOW)
    assert "commit" not in cells_table(made("s", rows[0], rows_of("acs", 0.0, 2, select="acs")), HOW)


PLAN = "base: {data: digits, epochs: 4}\nseeds: 4\ncells: [{name: '{select}', select: [rs2, acs]}, {name: full, select: none}]"


def test_coverage_is_of_what_is_planned(tmp_path: Path) -> None:
    for name in ("later", "now"):
        (tmp_path / f"{name}.yaml").write_text(PLAN)
    studies = {name: made(name, rows_of("rs2", 0.0, 3), rows_of("acs", 0.0, 2, select="acs")) for name in ("now", "unplanned")}
    assert coverage_table(studies, plans_in(tmp_path)).splitlines()[2:] == [
        "| `later` | 0 of 3 | 0 of 4 | 0 of 12 | – |",
        "| `now` | 2 of 3 | 2–3 of 4 | 5 of 12 | 0.1 |",
        "| `unplanned` | 2 | 2–3 | 5 | 0.1 |",
    ]


def test_a_page_is_filled_again_to_the_same_text() -> None:
    text = (
        "a\n<!-- table: {study: s, where: {loss: [ce]}} -->\nold\n<!-- /table -->\nb\n<!-- table: {study: digits} -->\n<!-- /table -->\n"
        "<!-- figures: {study: s, only: [dots, noise]} -->\n<!-- /figures -->\n"
    )
    rows = Evidence({"s": made("s", rows_of("rs2", 0.0), rows_of("acs", 1.0, select="acs"))})
    filled = evidence.filled(text, rows)
    assert "old" not in filled and "| acs |" in filled and "Study `digits` has no rows yet." in filled
    assert "![s, dots](results/figures/s_dots.png)" in filled and "no rows yet for the figure noise" in filled
    assert evidence.filled(filled, rows) == filled


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("table: {study: s, wehre: {}}", "key: unknown 'wehre'; accepted: compare, cost, free, measure, study, where"),
        ("table: {study: s, kind: pie}", f"kind: unknown 'pie'; accepted: {', '.join(sorted(KINDS))}"),
        ("table: {kind: cells}", "names no study"),
        ("table: {study: nosuch}", "study: unknown 'nosuch'"),
        ("table: {study: digits, where: {lossy: kd}}", "where: setting: unknown 'lossy'"),
        ("table: {study: digits, where: {loss: kdd}}", "where: no cell has loss 'kdd'; planned or run: ce, kd"),
        ("table: {study: s, where: {cell: [rs2, asc]}}", "where: no cell has cell 'asc'; planned or run: acs, rs2"),
        ("table: {study: s, where: {lr: 0.1}}", "setting that cells of the study differ in: unknown 'lr'"),
        ("table: {study: s, where: [1]}", r"where must be a mapping of settings to values; got \[1\]"),
        ("table: {study: s, compare: rs2}", "compare must be a mapping"),
        ("table: {study: s, compare: {selectt: rs2}}", "compare: setting: unknown 'selectt'"),
        ("table: {study: s, compare: {select: rs22}}", "compare: no cell has select 'rs22'"),
        ("table: {study: s, compare: {select: rs2, loss: ce}}", "compare must be one setting"),
        ("table: {study: s, free: epochs}", "free must be a list; got 'epochs'"),
        ("table: {study: s, free: [nope]}", "free: unknown 'nope'"),
        ("table: {study: s, measure: tset_accuracy}", "unknown 'tset_accuracy'"),
        ("table: {study: s, kind: matrix, across: fractoin}", "unknown 'fractoin'"),
        ("table: {study: s, kind: drift, where: {loss: kd}}", "key: unknown 'where'; accepted: study"),
        ("figures: {study: s, only: [dot]}", "only: unknown 'dot'; accepted: correction, curves, dots"),
        ("figures: {study: s, only: dots}", "only must be a list; got 'dots'"),
    ],
)
def test_markers_are_checked(marker: str, message: str) -> None:
    rows = Evidence({"s": made("s", rows_of("rs2", 0.0, 1), rows_of("acs", 0.0, 1, select="acs"))})
    with pytest.raises(InputError, match=message):
        evidence.filled(f"<!-- {marker} -->\n<!-- /{marker.split(':')[0]} -->", rows)


def test_figures_are_drawn_from_files_and_stay_small(tmp_path: Path) -> None:
    places = [("kd", 0.01, 0), ("kd", 0.1, 0), ("kd_clc", 0.1, 0), ("kd", 0.1, 0.1)]
    cells = [
        rows_of(f"{way}{place}", 0.3, select=way, loss=place[0], fraction=place[1], label_noise=place[2])
        for place in places
        for way in ("rs2", "acs", "topk")
    ]
    cells.append(rows_of("full", 1.0, select="none", fraction=1.0, loss="kd", label_noise=0))
    flat = [{**row, "noisy_selected_mean": row["label_noise"]} for rows in cells for row in rows]
    write(tmp_path, "s", flat, [row for one in flat for row in curve_of(one, 10)])
    write(tmp_path, "one", rows_of("rs2", 0.0))  # nothing to compare
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "s_gone.png").touch()
    assert set(read_studies(tmp_path)) == {"s", "one"}
    written = draw_all(Evidence.read(tmp_path), folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in written}
    names = ("dots", "fraction", "noise", "curves", "seconds", "correction")
    assert {path.name for path in written} == {f"s_{name}.png" for name in names}
    assert all(0 < path.stat().st_size < LARGEST for path in written)
