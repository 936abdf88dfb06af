"""Reports from synthetic run directories: whole, half-finished, without selections, damaged."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fastqat._errors import FastqatError, InputError
from fastqat.train.report import comparison_lines, comparison_table, facts, pick_pictures, write_comparison, write_report
from fastqat.train.report.curves import curves
from fastqat.train.report.drawing import style
from fastqat.train.report.folder import read_run
from fastqat.train.report.selection import drift, histograms
from fastqat.train.report.selection_facts import average_ranks, class_shares, kept_shares, leading_score, rank_correlation

from .report_runs import POOL, make_run


def text_of(path: Path) -> str:
    return re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8"))


def test_whole_run_has_every_part(tmp_path: Path) -> None:
    run = make_run(tmp_path / "acs")
    page = write_report(run)
    assert page == run.resolve() / "report.html"
    assert sorted(path.stem for path in (run / "figures").iterdir()) == ["classes", "curves", "drift", "pictures", "scores"]
    text = text_of(page)
    headline = ("90.50 %", "94.00 %", "−3.50", "resnet8 on digits, quantized to W2A32", "10 %", "1 min 10 s", "after epoch 12", "89.75 %")
    for said in (*headline, f"fastqat train --config {tmp_path.name}/acs/config.yaml", "qconfig: w2a32"):
        assert said in text


def test_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "acs")).read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 5
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert "http" not in re.sub(r'base64,[^"]*', "", html)


def test_same_run_gives_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "acs")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_run_without_selections_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "full", selections=())
    text = text_of(write_report(run))
    assert "no selection to show" in text
    assert [path.name for path in (run / "figures").iterdir()] == ["curves.png"]


@pytest.mark.parametrize(("float_epochs", "qat_epochs"), [(0, 1), (1, 0), (1, 1), (0, 0)])
def test_half_finished_and_short_runs(tmp_path: Path, float_epochs: int, qat_epochs: int) -> None:
    run = make_run(tmp_path / "run", float_epochs=float_epochs, qat_epochs=qat_epochs, selections=(0,), done=False)
    text = text_of(write_report(run))
    assert ("not finished" if float_epochs + qat_epochs else "No epoch is finished") in text
    assert "Test accuracy" not in text
    assert (run / "figures" / "curves.png").exists() == bool(float_epochs + qat_epochs)


def test_damaged_parts_are_named_and_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    whole = (run / "selections" / "epoch_0005.npz").read_bytes()
    (run / "selections" / "epoch_0005.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(run / "selections" / "epoch_0010.npz", indices=np.array([POOL]), labels=np.zeros(POOL, int))
    (run / "pictures.npz").write_bytes(b"PK broken")
    (run / "summary.json").write_text('{"test_accuracy": 0.')
    text = text_of(write_report(run))
    for name in ("epoch_0005.npz", "epoch_0010.npz", "pictures.npz", "summary.json"):
        assert f"{name} could not be read" in text
    assert not (run / "figures" / "pictures.png").exists()


def test_metrics_drop_a_torn_line_and_keep_the_last_of_a_repeated_epoch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", float_epochs=0, qat_epochs=3)
    lines = (run / "metrics.csv").read_text().splitlines()
    lines += [lines[2].replace("qat,1,6", "qat,1,999"), "qat,3,12,0.0"]
    (run / "metrics.csv").write_text("\n".join(lines))
    rows = read_run(run).rows
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[1]["steps"] == 999


def test_scores_with_nan_constant_scores_and_colour_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", selections=())
    (run / "selections").mkdir()
    flat, holed = np.zeros(POOL, np.float32), np.linspace(0, 1, POOL, dtype=np.float32)
    holed[:5] = np.nan
    arrays = {"indices": np.arange(290, 300), "labels": np.arange(POOL) % 3, "score_flat": flat, "score_holed": holed}
    for epoch in (0, 5):
        np.savez(run / "selections" / f"epoch_{epoch:04d}.npz", **arrays)
    np.savez(run / "pictures.npz", x=np.zeros((2, 6, 6, 3), np.uint8), index=np.array([290, 5]))
    write_report(run)
    assert len(list((run / "figures").iterdir())) == 5


def test_score_that_starts_later_is_drawn_from_its_own_first_selection(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = run / "selections" / "epoch_0000.npz"
    with np.load(first) as archive:
        np.savez(first, **{name: archive[name] for name in archive.files if name != "score_ds"})
    with style():
        titles = [axes.get_title("left") for axes in histograms(read_run(run)).figure.axes]
        lines = {line.get_label(): list(line.get_xdata()) for line in drift(read_run(run)).figure.axes[0].lines}
    assert titles[2:4] == ["DS (disagreement with the float model), epoch 6", "DS (disagreement with the float model), epoch 11"]
    assert lines["ds"] == [11] and lines["acs"] == [6, 11]


def test_epochs_count_from_one_in_both_stages(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", float_epochs=4, qat_epochs=12))
    with style():
        axis = curves(run).figure.axes[0]
        assert [axis.xaxis.get_major_formatter()(place, 0) for place in (-3, 0, 1, 12)] == ["1", "4", "1", "12"]
        assert list(axis.lines[-1].get_xdata()) == [1, 6, 11]


def test_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    before = write_report(run).read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastqat._files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.rglob("*.part"))


def test_many_classes_and_many_selections_without_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path / "rs2", selections=())
    (run / "selections").mkdir()
    for epoch in range(60):
        drawn = np.random.default_rng(epoch).permutation(POOL)[:30]
        np.savez(run / "selections" / f"epoch_{epoch:04d}.npz", indices=drawn, labels=np.arange(POOL) % 100)
    text = text_of(write_report(run))
    assert "24 of 60 selections" in text
    assert not (run / "figures" / "scores.png").exists()


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("x"), lambda path: None])
def test_folder_that_is_no_run(tmp_path: Path, make: object) -> None:
    make(tmp_path / "other")  # type: ignore[operator]
    with pytest.raises(InputError, match="fastqat train"):
        write_report(tmp_path / "other")
    assert not (tmp_path / "other" / "report.html").exists()


def test_matplotlib_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "fastqat.train.report."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FastqatError, match=r"pip install 'fastqat\[train\]'"):
        write_report(make_run(tmp_path / "run"))


def test_folder_of_runs_hints_at_a_run(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "acs")
    with pytest.raises(InputError, match=r"did you mean .*acs\?"):
        write_report(tmp_path / "runs")


def test_text_from_the_run_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>run", selections=())
    (run / "config.yaml").write_text("dataset: '<script>alert(1)</script>'\n")
    html = write_report(run).read_text(encoding="utf-8")
    assert "<script>" not in html and "<b>" not in html


def test_pick_pictures_follows_the_score_that_was_used() -> None:
    low_first = {"noise": np.array([3.0, 1, 2, 5, 4, 0]), "margin": np.array([0.9, 0.1, 0.5, 0.2, 0.7, 0.8])}
    assert pick_pictures([1, 3], low_first, count=2) == [1, 3, 0, 5]
    assert pick_pictures([1, 3], count=1) == [1]
    assert pick_pictures([0, 1, 2], np.arange(3.0)) == [0, 1, 2]


def test_comparison(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "random", test=0.85), make_run(tmp_path / "acs", test=0.90), make_run(tmp_path / "going", done=False)]
    rows = comparison_table(runs)
    assert [row["run"] for row in rows] == ["random", "acs", "going"]
    assert [row["test_accuracy"] for row in rows] == [0.85, 0.90, None]
    assert [row["finished"] for row in rows] == [True, True, False]
    assert rows[2]["gradient_steps"] == 36 and rows[2]["seconds"] == 16.5
    header, *lines = comparison_lines(runs)
    assert "model" not in header and len(lines) == 3
    assert lines[1][header.index("change")] == "−4.00"
    target = write_comparison(runs, tmp_path / "all" / "report.html")
    html = target.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 1 and html.count('class="best"') == 1
    assert (tmp_path / "all" / "report_curves.png").exists()


def test_comparison_needs_a_list(tmp_path: Path) -> None:
    for wrong in ([], str(tmp_path)):
        with pytest.raises(InputError, match="list of run directories"):
            comparison_table(wrong)


def test_ranks_and_correlation() -> None:
    assert average_ranks(np.array([2.0, 1.0, 2.0, 3.0])).tolist() == [2.5, 1, 2.5, 4]
    assert rank_correlation(np.arange(5), -np.arange(5)) == -1
    assert np.isnan(rank_correlation(np.zeros(4), np.arange(4)))
    assert leading_score(np.array([True, False]), {"a": np.array([0.0, 1.0])}) == ("a", -1)


def test_overlap_and_class_shares(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", selections=())
    (run / "selections").mkdir()
    for epoch, indices in ((0, [0, 1]), (2, [1, 2])):
        np.savez(run / "selections" / f"epoch_{epoch:04d}.npz", indices=np.array(indices), labels=np.array([0, 0, 1, 1]))
    records = read_run(run).selections
    shares = kept_shares(records)
    assert (shares["previous"][1], shares["first"], shares["ever"]) == (50, [100, 50], [50, 75])
    assert class_shares(records).tolist() == [[100, 50], [0, 50]]


def test_numbers_as_people_write_them() -> None:
    assert (facts.percent(0.1234), facts.points(-0.0345), facts.points(0.01)) == ("12.34 %", "−3.45", "+1.00")
    assert (facts.duration(3.21), facts.duration(61), facts.duration(7300)) == ("3.2 s", "1 min 01 s", "2 h 01 min")
    assert (facts.percent(None), facts.count(float("nan"))) == ("–", "–")
