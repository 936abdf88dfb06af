"""ScoreTable: a mapping, and a file that is whole or not there."""

import errno

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastqat._errors import DataError, InputError
from fastqat.selection import ScoreTable


def example():
    return ScoreTable({"evs": torch.tensor([0.5, 1.0, 0.25]), "ds": torch.zeros(3).double()}, torch.tensor([2, 0, 1]))


def test_it_is_a_mapping_of_fp32_columns():
    table = example()
    assert list(table) == ["evs", "ds"] and len(table) == 2 and table.num_samples == 3
    assert all(values.dtype == torch.float32 for values in table.values())
    assert table.get("acs") is None and "acs" not in table and "ds" in table
    assert torch.equal(table.with_score("acs", torch.ones(3))["acs"], torch.ones(3)) and "acs" not in table
    assert repr(table) == "ScoreTable(evs, ds; 3 samples, labels)"


@pytest.mark.parametrize("labels", [True, False])
def test_save_and_load_give_the_same_bits(tmp_path, labels):
    table = example() if labels else ScoreTable(dict(example()))
    table.save(tmp_path / "deep" / "scores.safetensors")
    again = ScoreTable.load(tmp_path / "deep" / "scores.safetensors")
    assert dict(again).keys() == dict(table).keys() and all(torch.equal(again[name], table[name]) for name in table)
    assert torch.equal(again.labels, table.labels) if labels else again.labels is None
    state = ScoreTable.from_state_dict(table.state_dict())
    assert all(torch.equal(state[name], table[name]) for name in table)


def test_a_full_disk_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "scores.safetensors"
    example().save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastqat._files.os.replace", full)
    with pytest.raises(OSError, match="free some space"):
        ScoreTable({"evs": torch.zeros(1)}).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_damaged_missing_and_foreign_files_are_one_line_errors(tmp_path):
    path = tmp_path / "scores.safetensors"
    example().save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="cannot read the score table"):
        ScoreTable.load(path)
    with pytest.raises(DataError, match="cannot read the score table"):
        ScoreTable.load(tmp_path / "none.safetensors")
    save_file({"evs": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="is not a score table"):
        ScoreTable.load(path)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ({}, None, "columns of one length"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, None, r"\{'a': \[2\], 'b': \[3\]\}"),
        ({"a": torch.zeros(2, 2)}, None, r"\[N\] each"),
        ({"a": torch.zeros(2)}, torch.zeros(3, dtype=torch.long), r"one value per sample, \[2\]; got \[3\]"),
    ],
)
def test_bad_input(scores, labels, message):
    with pytest.raises(InputError, match=message):
        ScoreTable(scores, labels)


@pytest.mark.parametrize("ending", ["safetensors", "npz", "parquet"])
def test_every_format_holds_the_whole_table(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    table = ScoreTable({"evs": torch.rand(5), "ds": torch.tensor([0.0, 1e-30, torch.inf, -1.0, 2.0])}, torch.arange(5), torch.randn(5, 3))
    path = tmp_path / f"scores.{ending}"
    table.save(path)
    again = ScoreTable.load(path)
    assert list(again) == ["evs", "ds"] or ending == "safetensors"
    assert all(torch.equal(again[name], table[name]) for name in table)
    assert torch.equal(again.labels, table.labels) and torch.equal(again.features, table.features)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot read the score table"):
        ScoreTable.load(path)
    ScoreTable({"evs": torch.rand(5)}).save(path)
    assert ScoreTable.load(path).labels is None and ScoreTable.load(path).features is None


def test_other_programs_can_read_it(tmp_path):
    table = ScoreTable({"evs": torch.rand(5)}, torch.arange(5) % 2)
    table.save(tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz") as arrays:
        assert list(arrays) == ["index", "label", "evs"] and arrays["evs"].dtype == np.float32
    parquet = pytest.importorskip("pyarrow.parquet")
    table.save(tmp_path / "scores.parquet")
    assert parquet.read_table(tmp_path / "scores.parquet").column_names == ["index", "label", "evs"]
    np.savez(tmp_path / "other.npz", evs=np.zeros(3))
    with pytest.raises(DataError, match="is not a score table"):
        ScoreTable.load(tmp_path / "other.npz")


def test_an_unknown_ending_or_a_name_that_is_taken_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is a .safetensors, .npz, .parquet file; got 'scores.csv'"):
        example().save(tmp_path / "scores.csv")
    with pytest.raises(InputError, match="cannot be called label"):
        ScoreTable({"label": torch.zeros(2)}).save(tmp_path / "scores.npz")
