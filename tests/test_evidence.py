"""Studies read back, compared and shown: what bench/evidence.md says is what the rows say."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from fastqat._bench import evidence, paired, study_cost, study_look, study_rows
from fastqat._bench.paired import BETTER, NOT_WORSE, WORSE
from fastqat._bench.study_figures import Evidence, draw_all
from fastqat._bench.study_rows import Comparison, difference, groups_of, labels, read_studies, reference_of, usual
from fastqat._bench.study_tables import cells_table, coverage_table, matrix_table, seconds_table
from fastqat._errors import InputError
from tests.made_studies import curve_of, made, rows_of, write

HOW = Comparison()
LARGEST = 80 * 1024  # bytes of a picture that is kept in the repository


@pytest.mark.parametrize("module", [evidence, paired, study_cost, study_look, study_rows])
def test_examples(module: object) -> None:
    assert not doctest.testmod(module).failed  # type: ignore[arg-type]


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
        50: rows_of("full", 1.0, 3, select="none", epochs=8),
        20: rows_of("short", 1.5, 3, select="none", epochs=2),
        10: rows_of("rs2", 3.0, 3),
        9: rows_of("acs", -9.0, 3, select="acs"),
    }
    curves = [row for pace, rows in cells.items() for one in rows for row in curve_of(one, pace)]
    study = study_rows.study_of("s", [row for rows in cells.values() for row in rows], curves)
    lines = seconds_table(study, HOW).splitlines()[4:]
    assert lines[1] == "| all data, epochs 2 | 3 of 3 | 80 | 1.00 |"
    assert lines[2] == "| rs2 | 3 of 3 | 30 | 0.38 |"
    assert lines[3] == "| acs | 0 of 3 | – | – |"
    assert "no curves" in seconds_table(made("s", cells[10], cells[9]), HOW)


def test_coverage_names_what_is_planned_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "later.yaml").touch()
    study = made("now", rows_of("rs2", 0.0, 3), rows_of("acs", 0.0, 5, select="acs"))
    assert coverage_table({"now": study}, tmp_path).splitlines()[2:] == ["| `later` | no rows | – | – |", "| `now` | 2 | 3–5 | 0.2 |"]


def test_a_page_is_filled_again_to_the_same_text() -> None:
    text = (
        "a\n<!-- table: {study: s, where: {loss: [ce, kd]}} -->\nold\n<!-- /table -->\nb\n<!-- table: {study: t} -->\n<!-- /table -->\n"
        "<!-- figures: {study: s, only: [dots, noise]} -->\n<!-- /figures -->\n"
    )
    rows = Evidence({"s": made("s", rows_of("rs2", 0.0), rows_of("acs", 1.0, select="acs"))})
    filled = evidence.filled(text, rows)
    assert "old" not in filled and "| acs |" in filled and "Study `t` has no rows yet." in filled
    assert "![s, dots](results/figures/s_dots.png)" in filled and "no rows yet for the figure noise" in filled
    assert evidence.filled(filled, rows) == filled


@pytest.mark.parametrize(
    ("marker", "message"),
    [("{study: s, wehre: {}}", "unknown key wehre"), ("{study: s, kind: pie}", "unknown kind 'pie'"), ("{kind: cells}", "names no study")],
)
def test_markers_are_checked(marker: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evidence.filled(f"<!-- table: {marker} -->\n<!-- /table -->", Evidence())


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
