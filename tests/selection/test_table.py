"""ScoreTable: a mapping, and a file that is whole or not there."""

import errno

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
        ScoreTable.load(tmp_path / "none")
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
