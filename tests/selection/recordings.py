"""Made-up trainings and the recordings of them."""

from __future__ import annotations

import torch

from fastqat.selection import ScoreTable

N, CLASSES = 23, 4


def batches(seed=0, epochs=6, repeats=9):
    """Shuffled epochs of N samples, of which some come twice, in batches of seven; labels stay, logits do not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (N,), generator=generator)
    for _ in range(epochs):
        extra = torch.randint(N, (repeats,), generator=generator)
        order = torch.cat([torch.arange(N), extra])[torch.randperm(N + repeats, generator=generator)]
        for index in order.split(7):
            yield index, 2 * torch.randn(len(index), CLASSES, generator=generator), labels[index]


def record(recorder, given, **options):
    for index, logits, targets in given:
        recorder.update(index, logits, targets, **options)
    return recorder


def same(a: ScoreTable, b: ScoreTable) -> None:
    assert sorted(a) == sorted(b) and torch.equal(a.labels, b.labels)
    for name in a:
        assert torch.equal(a[name], b[name]), name
