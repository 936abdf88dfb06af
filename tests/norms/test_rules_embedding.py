"""Rules of embeddings against single-sample autograd in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastqat.norms import find_rule
from fastqat.norms.rules import embedding

from .rule_checks import check_rule, rule_of


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(0, 4),
    positions=st.lists(st.integers(1, 6), max_size=2),
    rows=st.integers(1, 7),
    width=st.integers(1, 9),
    padding=st.booleans(),
)
def test_embedding(samples: int, positions: list[int], rows: int, width: int, padding: bool) -> None:
    ids = torch.randint(rows, (samples, *positions))
    check_rule(nn.Embedding(rows, width, padding_idx=rows - 1 if padding else None), ids)


def test_embedding_a_few_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_CHUNK", 100)
    check_rule(nn.Embedding(5, 4, padding_idx=2), torch.randint(5, (7, 11)))


def test_one_word_many_times() -> None:
    ids = torch.zeros(2, 5000, dtype=torch.int64)
    check_rule(nn.Embedding(3, 4), ids)


def test_sparse_gradients_are_the_same() -> None:
    layer, ids = nn.Embedding(5, 4), torch.randint(5, (3, 6))
    grad_y = torch.randn(3, 6, 4)
    want = rule_of(layer).sq_norm(layer, ids, grad_y, frozenset({"weight"}))
    layer.sparse = True
    assert torch.equal(rule_of(layer).sq_norm(layer, ids, grad_y, frozenset({"weight"})), want)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_embedding_bag(mode: str, padding_idx: int | None) -> None:
    ids = torch.randint(6, (5, 8))
    ids[0] = 3
    check_rule(nn.EmbeddingBag(6, 4, mode=mode, padding_idx=padding_idx), ids)


def test_what_mixes_the_samples_is_refused() -> None:
    for layer in (nn.Embedding(3, 2, scale_grad_by_freq=True), nn.EmbeddingBag(3, 2, mode="sum", scale_grad_by_freq=True)):
        rule = find_rule(layer)
        assert rule is not None and "mixes the samples" in str(rule.refuses(layer))
    layer = nn.EmbeddingBag(3, 2, mode="max")
    assert "'sum' or 'mean'" in str(find_rule(layer).refuses(layer))
