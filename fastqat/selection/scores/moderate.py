"""Moderate coreset: how far a sample lies from the middle of its class."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat.selection.geometry.blocks import row_blocks
from fastqat.selection.scores.registry import WholePass, register_score


@register_score(
    "moderate",
    formula="‖h − median of its class‖₂",
    direction="smallest",
    needs=("targets", "embeddings"),
    source="Moderate coreset, Xia et al., ICLR 2023",
)
def moderate(whole: WholePass) -> Tensor:
    """Distance to the median, coordinate by coordinate, of the embeddings of the sample's class. ``[N]`` fp32.

    The method keeps the middle of the ranking: ``select(..., by="moderate", method="middle")``, which is the same from either end. The
    direction says only what ``topk`` does: it keeps the most typical. An even number of samples has the mean of its two middle values.
    """
    embeddings, labels = whole.embeddings, whole.labels
    assert embeddings is not None and labels is not None, "its needs say so"
    scores = torch.empty(len(embeddings), device=embeddings.device)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1).to(embeddings.device)
        middle = _median(embeddings, members)
        for block in row_blocks(len(members), 16 * embeddings.shape[1]):
            rows = members[block]
            scores[rows] = (embeddings[rows].double() - middle).norm(dim=1).float()
    return scores


def _median(embeddings: Tensor, members: Tensor) -> Tensor:
    """The median of every column over `members`, fp64 ``[D]``, a block of columns at a time."""
    parts = []
    for block in row_blocks(embeddings.shape[1], 24 * len(members)):
        columns = embeddings[:, block][members].double()
        parts.append((columns.median(0).values - (-columns).median(0).values) / 2)
    return torch.cat(parts)
