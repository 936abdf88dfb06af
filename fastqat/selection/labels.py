"""Labels that are probably wrong: `find_label_issues`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import as_labels
from fastqat.selection.recorder import SUGGESTED
from fastqat.selection.seeding import Stream, generator_for
from fastqat.selection.table import ScoreTable

Method = Literal["aum", "confident", "self_confidence", "loss"]
UNKNOWN = -1
"""Suggested label where the table does not tell which other class a sample looks like."""


class LabelIssues(NamedTuple):
    """Samples whose label is probably wrong, the most suspicious first.

    ``indices`` int64 ``[K]`` in the data set; ``given`` int64 ``[K]`` their labels; ``suggested`` int64 ``[K]`` the labels that the model
    would give, −1 where that is not known; ``quality`` fp32 ``[K]`` how well the given label fits, in ascending order.
    """

    indices: Tensor
    given: Tensor
    suggested: Tensor
    quality: Tensor


def find_label_issues(
    table: ScoreTable,
    *,
    method: Method = "aum",
    threshold: float | None = None,
    threshold_samples: Tensor | Sequence[int] | None = None,
    labels: Tensor | Sequence[int] | None = None,
    probabilities: Tensor | None = None,
) -> LabelIssues:
    """Find the samples whose label is probably wrong.

    ===============  =========================================  ========================  ==============================================
    method           a label's quality                          from                      suspicious without `threshold`
    ===============  =========================================  ========================  ==============================================
    aum              column ``aum``                             a `DynamicsRecorder`      below 0: on average another class was ahead
    self_confidence  p_y, or else column ``label_confidence``   either                    p_y < max_{j≠y} p_j; of a recording p_y < ½
    loss             minus column ``loss``                      either                    as self_confidence, p_y = exp(−loss)
    confident        p_y                                        out-of-sample             confident learning: p_j ≥ t_j for a class j ≠ y,
                                                                probabilities             the likeliest such and likelier than y
    ===============  =========================================  ========================  ==============================================

    t_j is the mean of p_j over the samples that are labelled j. Probabilities must be out-of-sample (`out_of_sample`): a model has seen
    its own training labels. A recording must not be of a training so long that the model has learned the wrong labels by heart: at the
    learning rates that generalise, and with weight decay, a training of usual length is not.

    Args:
        table: scores and labels.
        threshold: labels whose quality is below it are suspicious, in place of the rule above.
        threshold_samples: of ``aum``, the samples that were trained as an extra class (`threshold_labels`). The threshold is then the 99th
            percentile of their margins; they themselves are not judged.
        labels: int ``[N]``; None: the table's.
        probabilities: ``[N, C]``; None: the table's features, if they are probabilities.

    Returns:
        `LabelIssues`, empty where nothing is suspicious.

    Raises:
        InputError: unknown method, no labels, a table that lacks what the method needs, arguments that do not fit the method or the table.

    Source: AUM, Pleiss et al., NeurIPS 2020 (arXiv 2001.10528); confident learning, Northcutt et al., JAIR 2021 (arXiv 1911.00068),
    section 3.1.

    Example:
        >>> import torch
        >>> table = ScoreTable({"aum": torch.tensor([2.0, -3.0, 1.0]), "suggested": torch.tensor([1, 0, 0])}, labels=[0, 1, 1])
        >>> issues = find_label_issues(table)
        >>> issues.indices, issues.given, issues.suggested, issues.quality
        (tensor([1]), tensor([1]), tensor([0]), tensor([-3.]))
    """
    given = _given(table, labels)
    p = _probabilities(table, given, probabilities)
    quality = label_quality(table, method=method, labels=given, probabilities=p)
    suggested = _suggested(table, given, p)
    judged = torch.ones(len(given), dtype=torch.bool)
    if threshold_samples is not None:
        if method != "aum" or threshold is not None:
            raise InputError("threshold_samples set the threshold of method 'aum'; leave out threshold= or choose that method")
        extra = torch.as_tensor(threshold_samples).long().cpu()
        if extra.dim() != 1 or not len(extra) or not 0 <= int(extra.min()) <= int(extra.max()) < len(given):
            raise InputError(f"threshold_samples must be indices in [0, {len(given)}), as threshold_labels gives them; got {extra}")
        threshold = float(quality[extra].double().quantile(0.99))
        judged[extra] = False
    if threshold is not None:
        suspicious = quality < threshold
    elif method == "aum":
        suspicious = quality < 0
    elif method == "confident":
        assert p is not None
        suspicious, suggested = _confident(p, given, suggested)
    else:
        suspicious = _overtaken(quality.exp() if method == "loss" else quality, given, p)
    found = (suspicious & judged).nonzero().flatten()
    found = found[quality[found].argsort(stable=True)]
    return LabelIssues(found, given[found], suggested[found], quality[found])


def label_quality(
    table: ScoreTable,
    *,
    method: Method = "aum",
    labels: Tensor | Sequence[int] | None = None,
    probabilities: Tensor | None = None,
) -> Tensor:
    """How well every label fits, fp32 ``[N]``, the larger the better: the measure that `find_label_issues` orders by, with its arguments.

    Example:
        >>> import torch
        >>> label_quality(ScoreTable({"loss": torch.tensor([0.5, 3.0])}, labels=[0, 1]), method="loss")
        tensor([-0.5000, -3.0000])
    """
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if method in ("aum", "loss"):
        source = "a DynamicsRecorder" if method == "aum" else "score_dataset, out_of_sample or a DynamicsRecorder"
        if method not in table:
            raise InputError(f"method {method!r} needs the column {method!r}; take the table from {source} (it has {', '.join(table)})")
        quality = table[method] if method == "aum" else -table[method]
    else:
        given = _given(table, labels)
        p = _probabilities(table, given, probabilities)
        if p is None and (method == "confident" or "label_confidence" not in table):
            raise InputError(
                f"method {method!r} needs out-of-sample probabilities; take the table from out_of_sample, or pass probabilities= [N, C]"
            )
        quality = table["label_confidence"] if p is None else p.gather(1, given[:, None]).squeeze(1)
    if bool(quality.isnan().any()):
        raise InputError(f"{int(quality.isnan().sum())} samples have no quality (NaN); check the model's logits")
    return quality


def threshold_labels(labels: Tensor | Sequence[int], *, num_classes: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Samples to train as an extra class, so that AUM learns what the margin of a wrong label looks like.

    N / (C + 1) samples drawn at random get the label C, which none of them deserves. Train a model with C + 1 outputs on these labels and
    a `DynamicsRecorder`, and give the indices to `find_label_issues`. A second run with another seed judges those that were drawn here.

    Returns:
        int64 ``[N // (C + 1)]`` sorted indices, and int64 ``[N]`` all labels to train with.

    Raises:
        InputError: labels that are no integers ≥ 0 or not below `num_classes` (None: the largest label + 1), or fewer than C + 1 samples.

    Source: Pleiss et al., NeurIPS 2020 (arXiv 2001.10528), section 3.2.

    Example:
        >>> chosen, labels = threshold_labels([0, 1, 0, 1, 0, 1])
        >>> len(chosen), labels[chosen]
        (2, tensor([2, 2]))
    """
    known = as_labels(labels, len(labels))
    classes = int(known.max()) + 1 if num_classes is None else num_classes
    if len(known) <= classes or int(known.min()) < 0 or int(known.max()) >= classes:
        raise InputError(f"labels must be in [0, {classes}), of more than {classes} samples; got {len(known)} samples")
    drawn = torch.randperm(len(known), generator=generator_for(seed, Stream.THRESHOLD_SAMPLES))[: len(known) // (classes + 1)]
    chosen = drawn.sort().values
    return chosen, known.index_fill(0, chosen, classes)


def _given(table: ScoreTable, labels: Tensor | Sequence[int] | None) -> Tensor:
    if labels is None and table.labels is None:
        raise InputError("the table has no labels; pass labels= [N]")
    known = table.labels if labels is None else as_labels(labels, table.num_samples)
    assert known is not None
    return known


def _probabilities(table: ScoreTable, given: Tensor, probabilities: Tensor | None) -> Tensor | None:
    """`probabilities` checked, or the table's features if they pass for some; None where there are none."""
    p = table.features if probabilities is None else probabilities.detach().cpu().float()
    if p is None:
        return None
    classes = int(given.max()) + 1
    fits = p.dim() == 2 and len(p) == len(given) and p.shape[1] >= max(classes, 2)
    fits = fits and bool((p >= 0).all()) and bool(((p.sum(1) - 1).abs() < 1e-2).all())
    if not fits and probabilities is not None:
        raise InputError(f"probabilities must be [{len(given)}, classes ≥ {classes}], each row ≥ 0 with sum 1; got {list(p.shape)}")
    return p if fits else None


def _suggested(table: ScoreTable, given: Tensor, p: Tensor | None) -> Tensor:
    """The likeliest class but the label; from a recording the one it saw most often."""
    if p is not None:
        return p.scatter(1, given[:, None], -1).argmax(1)
    return table[SUGGESTED].long() if SUGGESTED in table else torch.full_like(given, UNKNOWN)


def _overtaken(quality: Tensor, given: Tensor, p: Tensor | None) -> Tensor:
    """Whether another class is likelier than the label, whose probability is `quality`."""
    return quality < (0.5 if p is None else p.scatter(1, given[:, None], -1).amax(1))


def _confident(p: Tensor, given: Tensor, suggested: Tensor) -> tuple[Tensor, Tensor]:
    """Samples off the diagonal of the confident joint whose class there is likelier than the label, and that class."""
    counts = given.bincount(minlength=p.shape[1])
    own = p.gather(1, given[:, None]).squeeze(1)
    means = torch.zeros(p.shape[1], dtype=torch.float64).index_add_(0, given, own.double()) / counts
    confident = p.double() >= torch.where(counts > 0, means, torch.inf)
    best = torch.where(confident, p, -1).max(1)
    suspicious = (best.values > own) & (best.indices != given)
    return suspicious, torch.where(suspicious, best.indices, suggested)
