"""Contrastive active learning: samples whose neighbours are predicted otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat.selection.budget import check_count
from fastqat.selection.geometry.blocks import row_blocks
from fastqat.selection.geometry.metrics import Name
from fastqat.selection.geometry.nearest import nearest_neighbours
from fastqat.selection.scores.registry import WholePass, register_score


@register_score(
    "cal",
    formula="mean over the k nearest n of KL(p_n ‖ p)",
    direction="largest",
    needs=("embeddings", "probabilities"),
    source="CAL, Margatina et al., EMNLP 2021 (arXiv 2109.03764)",
)
def cal(whole: WholePass, *, k: int = 10, metric: Name = "euclidean") -> Tensor:
    """Mean divergence of the predictions of the `k` samples nearest in embedding space from the sample's own, in nats. ``[N]`` fp32.

    The largest are kept: samples near a border of the decision. (DeepCore's code keeps the smallest.) The neighbours are all other
    samples where there are not more than `k`; a sample alone scores 0. No probability counts as less than fp32's least normal number.

    Raises:
        InputError: `k` is not a whole number ≥ 1, or an unknown metric.
    """
    embeddings, p = whole.embeddings, whole.probabilities
    assert embeddings is not None and p is not None, "its needs say so"
    count = min(check_count("k", k), len(p) - 1)
    if count == 0:
        return torch.zeros(len(p), device=p.device)
    neighbours = nearest_neighbours(embeddings, count, metric=metric)[1].to(p.device)
    scores = torch.empty(len(p), device=p.device)
    for block in row_blocks(len(p), 24 * count * p.shape[1]):
        scores[block] = _divergence(p[neighbours[block]], p[block, None]).mean(1).float()
    return scores


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) along the last dimension, in fp64."""
    least = torch.finfo(torch.float32).tiny
    p, q = p.double().clamp_min(least), q.double().clamp_min(least)
    return (p * (p.log() - q.log())).sum(-1)
