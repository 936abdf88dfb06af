"""Scores of every sample from a model that has not seen it: cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._errors import InputError
from fastqat._tensor_data import subset
from fastqat.selection.budget import as_labels, check_count
from fastqat.selection.datasets import labels_of, sized
from fastqat.selection.scorer import score_dataset
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.table import ScoreTable


def fold_indices(labels: Tensor | Sequence[int], folds: int, *, seed: int = 0) -> Tensor:
    """Which of `folds` parts each sample belongs to: int64 ``[N]``; a function of `labels`, `folds` and `seed` only.

    Stratified: the parts of each class differ by at most one sample, and so do the parts as a whole.

    Raises:
        InputError: fewer than two folds, or fewer samples than folds.

    Example:
        >>> parts = fold_indices([0, 0, 0, 0, 1, 1], 2)
        >>> parts[:4].bincount(), parts[4:].bincount()
        (tensor([2, 2]), tensor([1, 1]))
    """
    known = as_labels(labels, len(labels))
    if check_count("folds", folds, least=2) > len(known):
        raise InputError(f"folds must be at most the number of samples, {len(known)}; got {folds}")
    shuffled = torch.randperm(len(known), generator=generator_for(seed, Stream.FOLDS))
    by_class = shuffled[known[shuffled].argsort(stable=True)]
    parts = torch.empty_like(known)
    parts[by_class] = torch.arange(len(known)) % folds
    return parts


def out_of_sample(
    train: Callable[[Tensor, int], nn.Module],
    dataset: Dataset,
    folds: int = 5,
    *,
    scores: str | Sequence[str] = ("evs", "loss", "margin"),
    labels: Tensor | Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> ScoreTable:
    """Score every sample with a model that was not trained on it, by cross-validation.

    Args:
        train: ``train(indices, fold) -> model`` trains a fresh model on the samples at `indices` (int64, sorted), without a look at the
            others; called once for each of the folds 0, 1, ..., in order.
        dataset: yields ``(x, y)``, un-augmented; `train` may use an augmented view of the same samples.
        folds: number of parts, at least 2; each is scored by the model that was trained on the others.
        scores: as of `score_dataset`.
        labels: int ``[N]``, to stratify by; None asks the data set.
        seed: of the parts, see `fold_indices`.
        options: of `score_dataset`: ``batch_size``, ``device``, ``forward``, ...

    Returns:
        `ScoreTable` in data-set order, with the probabilities ``[N, C]`` as its features: what `find_label_issues` takes.

    Raises:
        InputError: fewer than two folds, more folds than samples, `features` among the options, what `score_dataset` raises.

    Source: Northcutt et al., JAIR 2021 (arXiv 1911.00068), section 3.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)
        >>> table = out_of_sample(lambda indices, fold: torch.nn.Linear(4, 3), data, folds=3)
        >>> table.features.shape
        torch.Size([30, 3])
    """
    if "features" in options:
        raise InputError("out_of_sample keeps the probabilities as features; score the data again with features= for others")
    parts = fold_indices(labels_of(dataset) if labels is None else as_labels(labels, sized(dataset)), folds, seed=seed)
    tables = []
    for fold in range(folds):
        model = train((parts != fold).nonzero().flatten(), fold)
        held = subset(dataset, (parts == fold).nonzero().flatten())
        tables.append(score_dataset(model, held, scores, features="probabilities", **options))
    return _interleaved(tables, parts)


def _interleaved(tables: list[ScoreTable], parts: Tensor) -> ScoreTable:
    """One table in data-set order of the tables of all parts."""
    place = parts.argsort(stable=True).argsort()

    def whole(rows: Sequence[Tensor | None]) -> Tensor | None:
        known = [part for part in rows if part is not None]
        return torch.cat(known)[place] if len(known) == len(tables) else None

    columns = {name: torch.cat([table[name] for table in tables])[place] for name in tables[0]}
    return ScoreTable(columns, whole([table.labels for table in tables]), whole([table.features for table in tables]))
