"""score_dataset: every form of data, and the memory that a pass holds."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from bench.memory import peak_bytes
from fastqat._errors import DataError, InputError
from fastqat._tensor_data import TensorData
from fastqat.selection import score_dataset
from fastqat.selection.scoring.reading import Deal, Reader
from fastqat.selection.scoring.rows import Rows

from .scoring import SIZE, Halves, Mappings, SizedStream, Stream, data, net


def same(table, want):
    return (
        list(table) == list(want) and all(torch.equal(table[name], want[name]) for name in want) and torch.equal(table.labels, want.labels)
    )


@pytest.fixture(scope="module")
def want():
    return score_dataset(net(), data(), ["evs", "entropy"], batch_size=32)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stream", [Stream, SizedStream])
def test_a_stream_is_scored_in_the_order_in_which_it_yields(want, stream, workers):
    assert same(score_dataset(net(), stream(), ["evs", "entropy"], batch_size=32, num_workers=workers), want)


def test_a_stream_that_ends_early_is_an_error_and_so_is_one_that_is_empty():
    class Short(SizedStream):
        def __len__(self):
            return SIZE + 1

    with pytest.raises(DataError, match="says it has 104 samples but yielded 103"):
        score_dataset(net(), Short())
    with pytest.raises(DataError, match="the data set is empty"):
        score_dataset(net(), Stream(0))


def named(items):
    return {"input": torch.stack([x for x, _ in items]), "labels": torch.stack([y for _, y in items])}


LOADERS = {
    "map": lambda: DataLoader(data(), batch_size=32),
    "stream": lambda: DataLoader(Stream(), batch_size=32),
    "sampler": lambda: DataLoader(data(), batch_sampler=BatchSampler(SequentialSampler(data()), 32, False)),
    "whole batches": lambda: DataLoader([(x, y) for x, y in zip(*(t.split(32) for t in data().tensors), strict=True)], batch_size=None),
    "collate": lambda: DataLoader(data(), batch_size=32, collate_fn=named),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_that_keeps_the_order_brings_its_own_settings(want, kind):
    dice = torch.get_rng_state()
    assert same(score_dataset(net(), LOADERS[kind](), ["evs", "entropy"]), want)
    assert torch.equal(dice, torch.get_rng_state())


class Own(DataLoader):
    """Some loader of a framework."""


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda: DataLoader(data(), 32, shuffle=True), "takes its samples from a RandomSampler; pass shuffle=False"),
        (lambda: DataLoader(data(), batch_sampler=BatchSampler(RandomSampler(data()), 32, False)), "from a RandomSampler"),
        (lambda: DataLoader(data(), 32, drop_last=True), "drop_last=True"),
        (lambda: DataLoader(data(), batch_sampler=[[0, 1], [5]]), "from a list"),
        (lambda: Own(data(), 32), "Own may reorder or divide samples; pass its .dataset"),
    ],
)
def test_a_loader_that_shuffles_or_leaves_out_samples_is_refused(loader, message):
    with pytest.raises(InputError, match=message):
        score_dataset(net(), loader())


@pytest.mark.parametrize("key", ["labels", "label"])
def test_mappings_are_keyword_arguments_and_carry_their_labels(want, key):
    assert same(score_dataset(Halves(), Mappings(key), ["evs", "entropy"], batch_size=32), want)
    by_hand = score_dataset(
        Halves(), Mappings(key), ["evs", "entropy"], batch_size=32, forward=lambda model, x: model(x["left"], x["right"])
    )
    assert same(by_hand, want)


def test_a_mapping_in_a_pair_is_one_argument(want):
    class Pairs(Mappings):
        def __getitem__(self, i):
            item = super().__getitem__(i)
            return {"halves": [item["left"], item["right"]]}, item["labels"]

    table = score_dataset(net(), Pairs(), ["evs", "entropy"], batch_size=32, forward=lambda model, x: model(torch.cat(x["halves"], 1)))
    assert same(table, want)


FORMS = {
    "map": (data, 0),
    "workers": (data, 2),
    "stream": (Stream, 0),
    "sized stream": (SizedStream, 1),
    "tensors": (lambda: TensorData(data().tensors[0][:, :, None], data().tensors[1]), 0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [7, 32, 200])
def test_shares_of_a_data_set_are_whole_batches_of_it_and_each_is_there_once(form, batch_size):
    make, workers = FORMS[form]
    reader = Reader(make(), batch_size, workers)
    whole = list(reader.batches(Deal()))
    assert [batch.start for batch in whole] == list(range(0, SIZE, batch_size))
    for deal, done in ((Deal(0, 2), 0), (Deal(1, 2), 0), (Deal(2, 3), 1), (Deal(0, 1), 2), (Deal(6, 7), 0)):
        own, share = list(reader.batches(deal, done)), reader.share(deal)
        expected = [batch for number, batch in enumerate(whole) if number % deal.size == deal.rank]
        assert share is None or share == sum(len(batch.y) for batch in expected)
        assert len(own) == len(expected[done:])
        assert all(
            a.start == b.start and torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(own, expected[done:], strict=True)
        )


class Made(Dataset):
    """Logits made on the way, so that nothing but the pass holds memory that grows with the data."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def batches(self, batch_size, indices=None):
        for start in range(0, self.size, batch_size):
            rows = min(batch_size, self.size - start)
            yield torch.ones(rows, 3), torch.zeros(rows, dtype=torch.int64)


class MadeStream(IterableDataset):
    def __init__(self, size):
        self.size = size

    def __iter__(self):
        for _, batch in enumerate(Made(self.size).batches(2000)):
            yield batch


def growth(score, make):
    """Bytes that a pass holds more for each sample more, up to 64k samples."""
    small, large = 32_768, 65_536
    peaks = [peak_bytes(lambda size=size: score(make(size))) for size in (small, large)]
    return (peaks[1] - peaks[0]) / (large - small)


def test_a_pass_holds_what_it_says():
    """4 bytes per sample and score and 8 per label; 4 more per value of a feature; up to twice that where the size is not known."""
    score_dataset(nn.Identity(), Made(2000), batch_size=2000)
    scores = ["evs", "entropy", "margin"]
    assert growth(lambda made: score_dataset(nn.Identity(), made, scores, batch_size=2000), Made) <= 4 * 3 + 8 + 0.1
    assert growth(lambda made: score_dataset(nn.Identity(), made, "evs", features="error", batch_size=2000), Made) <= 4 * 4 + 8 + 0.1
    streamed = growth(lambda size: score_dataset(nn.Identity(), DataLoader(MadeStream(size), batch_size=None), scores), lambda size: size)
    assert streamed <= 2 * (4 * 3 + 8) + 0.1


def test_rows_grow_and_can_be_read_across_their_blocks():
    values = torch.arange(40_000.0)
    for expected in (None, 40_000, 100):
        rows = Rows(expected)
        for part in values.split(7_777):
            rows.append(part)
        assert len(rows) == 40_000 and torch.equal(rows.all(), values) and torch.equal(rows.part(90, 30_000), values[90:30_000])
    assert Rows(None).all().numel() == 0 and Rows(None).row_shape == ()


def test_labels_that_are_no_tensors_or_no_integers_are_refused():
    with pytest.raises(DataError, match="labels must be integers, one per sample, .*; got list"):
        score_dataset(net(), DataLoader(data(), 10, collate_fn=lambda items: (torch.stack([x for x, _ in items]), ["a"] * len(items))))
    assert score_dataset(net(), TensorDataset(torch.zeros(4, 8), torch.zeros(4, dtype=torch.uint8))).labels.dtype == torch.int64


@pytest.mark.parametrize("stream", [Stream, SizedStream])
def test_the_bar_shows_how_fast_it_goes_and_the_time_left_where_the_end_is_known(monkeypatch, capsys, stream):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    score_dataset(net(), stream(), batch_size=32)
    shown = capsys.readouterr().err
    assert "scoring" in shown and "samples/s" in shown and f"{SIZE}/{SIZE if stream is SizedStream else '?'}" in shown


def test_a_teacher_that_is_a_module_leaves_nothing_behind():
    """Its logits would take 4·N·C bytes more."""
    grown = growth(lambda made: score_dataset(nn.Identity(), made, "ds", teacher=nn.Identity(), batch_size=2000), Made)
    assert grown <= 4 + 8 + 0.1


def test_a_stream_of_unknown_length_read_by_several_workers_is_warned_of():
    with pytest.warns(UserWarning, match="Stream is read by 2 workers: .* does not divide itself among them .* comes once from each"):
        assert Reader(DataLoader(Stream(), 10, num_workers=2), 10).size is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Reader(DataLoader(SizedStream(), 10, num_workers=2), 10)
        Reader(DataLoader(Stream(), 10, num_workers=1), 10)
