"""Batches: every sample once, augmentation against a per-sample oracle, the same bits from the same generator."""

import pytest
import torch
import torch.nn.functional as F

from fastqat._distributed import World
from fastqat.data import TensorData
from fastqat.selection.seeding import Stream, generator_for
from fastqat.train.batches import RandomCropFlip, TrainSource, split_order, steps_per_epoch

CPU = torch.device("cpu")


def crop_flip_oracle(x, drawn, padding):
    out = []
    for picture, (top, left, mirrored) in zip(x, drawn.T.tolist(), strict=True):
        window = F.pad(picture, (padding,) * 4)[:, top : top + x.shape[2], left : left + x.shape[3]]
        out.append(window.flip(2) if mirrored else window)
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7)], ids=str)
@pytest.mark.parametrize(("padding", "flip"), [(0, True), (2, False), (4, True)])
def test_augmentation_equals_the_oracle(dtype, shape, padding, flip):
    x = torch.randint(0, 256, (33, *shape)).to(dtype)
    augment = RandomCropFlip(padding, flip)
    drawn = augment.draw(33, torch.Generator().manual_seed(0), CPU)
    assert torch.equal(augment(x, drawn), crop_flip_oracle(x, drawn, padding))
    assert drawn[:2].max() == 2 * padding and drawn[:2].min() == 0
    assert drawn[2].float().mean().item() == pytest.approx(0.5 if flip else 0.0, abs=0.3)


@pytest.mark.parametrize(("samples", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (3, 4, [3]), (1, 4, [1]), (8, 4, [4, 4])])
def test_no_batch_of_one(samples, batch_size, sizes):
    parts = split_order(torch.arange(samples), batch_size)
    assert [len(part) for part in parts] == sizes and torch.cat(parts).tolist() == list(range(samples))
    assert steps_per_epoch(samples, batch_size) == len(sizes)


def source(augment):
    data = TensorData(torch.randint(0, 256, (41, 3, 8, 8), dtype=torch.uint8), torch.arange(41))
    return TrainSource(data, augment=augment, workers=0, device=CPU)


def test_an_epoch_is_a_function_of_its_generator():
    given, order = source(RandomCropFlip(2, True)), torch.randperm(41)
    first, again, other = (
        torch.cat([batch.x for batch in given.batches(order, 8, generator_for(0, Stream.AUGMENT, epoch))]) for epoch in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.cat([batch.y for batch in given.batches(order, 8, generator_for(0, Stream.AUGMENT, 3))]).tolist() == order.tolist()


def test_batch_size_does_not_change_the_augmentation():
    given, order = source(RandomCropFlip(2, True)), torch.randperm(41)
    small, large = (torch.cat([batch.x for batch in given.batches(order, size, torch.Generator().manual_seed(1))]) for size in (5, 41))
    assert torch.equal(small, large)


def test_data_sets_without_tensors_go_through_a_loader():
    given, order = source(None), torch.randperm(41)
    plain = TrainSource(torch.utils.data.TensorDataset(given.dataset.x, given.dataset.y), augment=None, workers=0, device=CPU)
    got = [batch.y for batch in plain.batches(order, 8, torch.Generator())]
    assert torch.cat(got).tolist() == order.tolist() and [len(y) for y in got] == [8, 8, 8, 8, 9]


class Jittered(torch.utils.data.Dataset):
    """Transforms that draw from torch's generator."""

    def __getitem__(self, index):
        return torch.randn(2) + 100 * index, index

    def __len__(self):
        return 41


def epochs_of(given, processes, monkeypatch, workers=0):
    """The batches of each process, by rank."""
    given.workers, found = workers, []
    for rank in range(processes):
        with monkeypatch.context() as patch:
            patch.setattr("fastqat.train.batches.world", lambda rank=rank: World(rank, processes))
            found.append(list(given.batches(torch.arange(40, -1, -1), 8, torch.Generator().manual_seed(1))))
    return found


@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_processes_share_each_batch_and_its_crops(kind, monkeypatch):
    given = source(RandomCropFlip(2, True)) if kind == "tensors" else TrainSource(Jittered(), augment=None, workers=0, device=CPU)
    state = torch.get_rng_state()
    [whole] = epochs_of(given, 1, monkeypatch)
    assert [batch.share for batch in whole] == [1.0] * 5 and torch.equal(state, torch.get_rng_state())
    for processes in (2, 3):
        dealt = epochs_of(given, processes, monkeypatch)
        for one, parts in zip(whole, zip(*dealt, strict=True), strict=True):
            for name in ("x", "y", "indices"):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(one, name))
            assert sum(part.share for part in parts) == pytest.approx(processes)
            assert all(part.share == pytest.approx(len(part.y) * processes / len(one.y)) for part in parts)


def test_workers_of_the_loader_do_not_change_what_is_drawn(monkeypatch):
    given = TrainSource(Jittered(), augment=None, workers=0, device=CPU)
    [none], [one] = epochs_of(given, 1, monkeypatch), epochs_of(given, 1, monkeypatch, workers=1)
    assert all(torch.equal(a.x, b.x) for a, b in zip(none, one, strict=True))


def test_a_batch_that_is_too_small_for_all_is_repeated_without_weight(monkeypatch):
    given = source(None)
    last = [batches[-1] for batches in epochs_of(given, 5, monkeypatch)]
    assert [len(batch.y) for batch in last] == [2, 2, 2, 3, 2] and [batch.share > 0 for batch in last] == [True] * 4 + [False]
    assert torch.equal(last[4].x, last[0].x) and sum(batch.share for batch in last) == pytest.approx(5)
