"""`select`: from scores to the samples that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.budget import Group, as_labels, class_groups, whole_budget
from fastqat.selection.scores.registry import direction_of
from fastqat.selection.selectors.registry import Request, Selection, Selector, get_selector
from fastqat.selection.table import ScoreTable


def select(
    scores: ScoreTable | Tensor | Sequence[float] | int,
    fraction: float,
    *,
    by: str | None = None,
    method: str = "topk",
    labels: Tensor | Sequence[int] | None = None,
    balanced: bool | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Selection:
    """Choose round(fraction · N) samples, or round(fraction · n_c) of each class c when balanced (ties to even).

    Deterministic: among equal scores the lowest index comes first; NaN is refused.

    Args:
        scores: a `ScoreTable`, or one score per sample ``[N]`` of which the largest are best, or just N for a method without scores.
        fraction: in (0, 1].
        by: the table's column to use; may be left out when it has only one. Its direction (`list_scores`) says which end is best.
        method: a name from `list_selectors`.
        labels: integers ``[N]``; a `ScoreTable` brings its own.
        balanced: None balances when labels are known.
        generator: for the methods that draw.
        options: the method's own, see `list_selectors`.

    Returns:
        `Selection`: ``indices`` int64 ``[K]``, best first; ``weights`` ``[K]`` or None.

    Raises:
        InputError: fraction outside (0, 1] or leaving a class empty, NaN scores, lengths that differ, no samples, unknown names,
            an argument of another type.

    Source: balance as in the released code of ACS (Huang et al., TMLR 2024, arXiv 2306.07215).

    Example:
        >>> import torch
        >>> select(torch.tensor([0.1, 0.9, 0.5, 0.7]), 0.5).indices
        tensor([1, 3])
        >>> select(torch.tensor([0.1, 0.9, 0.5, 0.7]), 0.5, labels=[0, 1, 0, 1]).indices
        tensor([1, 2])
    """
    _check_types(by, method, balanced, generator)
    selector = get_selector(method)
    unknown = set(options) - set(selector.options)
    if unknown:
        raise InputError(f"{method} does not take {', '.join(sorted(unknown))}; its options: {', '.join(selector.options) or 'none'}")
    utility, size = _utility(scores, by, selector)
    if labels is None and isinstance(scores, ScoreTable):
        labels = scores.labels
    if balanced and labels is None:
        raise InputError("balanced=True needs labels; pass labels= or balanced=False")
    if balanced is False or labels is None:
        groups = [Group(0, torch.arange(size), whole_budget(size, fraction))]
    else:
        groups = class_groups(as_labels(labels, size), fraction)
    picks = [_pick(selector, utility, group, number, generator, options) for number, group in enumerate(groups)]
    return _merge(selector, utility, picks)


def _check_types(by: Any, method: Any, balanced: Any, generator: Any) -> None:
    """Refuse what would fail later and less clearly."""
    if by is not None and not isinstance(by, str):
        raise InputError(f"by must be the name of a score, or None; got {by!r}")
    if not isinstance(method, str):
        raise InputError(f"method must be the name of a selector (list_selectors() shows all); got {method!r}")
    if balanced not in (None, True, False):
        raise InputError(f"balanced must be True, False or None; got {balanced!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator must be a torch.Generator or None; got {generator!r}; torch.Generator().manual_seed(0) makes one")


def _one_per_sample(scores: Any) -> Tensor:
    """`scores` as a floating tensor ``[N]`` on the CPU."""
    try:
        values = torch.as_tensor(scores).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        kind = type(scores).__name__
        raise InputError(f"scores must be a ScoreTable, one number per sample, or the number of samples; got {kind} {scores!r}") from None
    if values.dim() != 1 or values.numel() == 0:
        raise InputError(f"scores must be one value per sample, [N] with N ≥ 1; got shape {list(values.shape)}")
    return values if values.is_floating_point() else values.double()


def _utility(scores: ScoreTable | Tensor | Sequence[float] | int, by: str | None, selector: Selector) -> tuple[Tensor | None, int]:
    """Scores turned so that larger is better (None when the selector needs none), and the number of samples."""
    needs_scores = "scores" in selector.needs
    if isinstance(scores, int) and not isinstance(scores, bool):
        if needs_scores:
            raise InputError(f"{selector.name} needs scores; got only a number of samples")
        if scores < 1:
            raise InputError(f"there is nothing to select from: {scores} samples")
        return None, scores
    if isinstance(scores, ScoreTable):
        if not needs_scores:
            return None, scores.num_samples
        by = scores.only_name() if by is None else by
        values = scores[by]
    else:
        values = _one_per_sample(scores)
    smallest = by is not None and direction_of(by) == "smallest"
    if not needs_scores:
        return None, values.numel()
    nan = values.isnan()
    if nan.any():
        raise InputError(f"{int(nan.sum())} scores are NaN, the first at index {int(nan.nonzero()[0])}; check the model's logits")
    return (-values if smallest else values), values.numel()


def _pick(
    selector: Selector, utility: Tensor | None, group: Group, number: int, generator: torch.Generator | None, options: dict[str, Any]
) -> Selection:
    """What `selector` keeps of one group, as data-set indices."""
    own = None if utility is None else utility[group.members]
    picked = selector.pick(Request(own, len(group.members), group.budget, number, generator), **options)
    return Selection(group.members[picked.indices], picked.weights)


def _merge(selector: Selector, utility: Tensor | None, picks: list[Selection]) -> Selection:
    """All groups' picks in one order: by utility where the selector ranks by it, else by rank within the group."""
    indices = torch.cat([pick.indices for pick in picks])
    weights = torch.cat([pick.weights for pick in picks if pick.weights is not None]) if picks[0].weights is not None else None
    if len(picks) == 1:
        return Selection(indices, weights)
    by_index = indices.argsort()
    if selector.order is None or utility is None:
        key = torch.cat([torch.arange(0.5, len(pick)) / len(pick) for pick in picks])
    else:
        key = utility[indices] * (-1 if selector.order == "largest" else 1)
    order = by_index[key[by_index].argsort(stable=True)]
    return Selection(indices[order], None if weights is None else weights[order])
