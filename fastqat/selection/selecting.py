"""`select`: from scores to the samples that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    features: Tensor | None = None,
    val_features: Tensor | None = None,
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
        features: floating ``[N, D]``, for the methods that compare samples; a `ScoreTable` may bring its own.
        val_features: floating ``[M, D]`` of validation samples, for the methods that match them.
        generator: for the methods that draw.
        options: the method's own, see `list_selectors`.

    Returns:
        `Selection`: ``indices`` int64 ``[K]``, best first; ``weights`` ``[K]`` or None.

    Raises:
        InputError: fraction outside (0, 1] or leaving a class empty, NaN scores, lengths that differ, no samples, unknown names,
            an argument of another type, no features where the method needs them, or features that are not finite.

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
    if isinstance(scores, ScoreTable):
        labels = scores.labels if labels is None else labels
        features = scores.features if features is None else features
    if balanced and labels is None:
        raise InputError("balanced=True needs labels; pass labels= or balanced=False")
    known = None if labels is None else as_labels(labels, size)
    if balanced is False or known is None:
        groups = [Group(0, torch.arange(size), whole_budget(size, fraction))]
    else:
        groups = class_groups(known, fraction)
    given = _Given(
        utility,
        -utility if utility is not None and _smallest(scores, by) else utility,
        _features("features", features, selector, size),
        _features("val_features", val_features, selector),
        known,
    )
    picks = [_pick(selector, given, group, number, generator, options) for number, group in enumerate(groups)]
    return _merge(selector, utility, picks, groups)


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
    if not needs_scores:
        return None, values.numel()
    nan = values.isnan()
    if nan.any():
        raise InputError(f"{int(nan.sum())} scores are NaN, the first at index {int(nan.nonzero()[0])}; check the model's logits")
    return (-values if _smallest(scores, by) else values), values.numel()


def _smallest(scores: Any, by: str | None) -> bool:
    """Whether the smallest scores are the best."""
    by = scores.only_name() if by is None and isinstance(scores, ScoreTable) else by
    return by is not None and direction_of(by) == "smallest"


def _features(name: str, features: Any, selector: Selector, size: int | None = None) -> Tensor | None:
    """`features` checked, None where `selector` needs none."""
    if name not in selector.needs:
        return None
    if features is None:
        how = "pass features=, or a table of score_dataset(..., features=...)" if name == "features" else f"pass {name}="
        raise InputError(f"{selector.name} compares samples by their {name}; {how}")
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.dim() != 2 or features.shape[1] == 0:
        got = f"{features.dtype} {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"{name} must be a floating tensor [samples, features]; got {got}; flatten what has more dimensions")
    if size is not None and len(features) != size:
        raise InputError(f"{name} must have one row per sample, {size}; got {len(features)}")
    if not len(features) or not bool(features.isfinite().all()):
        raise InputError(f"{name} must be finite and not empty; got {len(features)} rows, some with NaN or infinity; check the model")
    return features.detach()


class _Given(NamedTuple):
    """What there is of every sample; see `Request`."""

    utility: Tensor | None
    scores: Tensor | None
    features: Tensor | None
    val_features: Tensor | None
    labels: Tensor | None


def _rows(values: Tensor | None, members: Tensor) -> Tensor | None:
    """The rows of `members`; without a copy where these are all."""
    return values if values is None or len(members) == len(values) else values[members.to(values.device)]


def _pick(
    selector: Selector, given: _Given, group: Group, number: int, generator: torch.Generator | None, options: dict[str, Any]
) -> Selection:
    """What `selector` keeps of one group, as data-set indices."""
    request = Request(
        _rows(given.utility, group.members),
        len(group.members),
        group.budget,
        number,
        generator,
        _rows(given.features, group.members),
        given.val_features,
        _rows(given.labels, group.members),
        _rows(given.scores, group.members),
    )
    picked = selector.pick(request, **options)
    return Selection(group.members[picked.indices.cpu()], None if picked.weights is None else picked.weights.float().cpu())


def _merge(selector: Selector, utility: Tensor | None, picks: list[Selection], groups: list[Group]) -> Selection:
    """All groups' picks in one order: by utility where the selector ranks by it, else by rank within the group."""
    indices = torch.cat([pick.indices for pick in picks])
    weighted = _rescaled(selector, picks, groups)
    weights = torch.cat(weighted) if weighted else None
    if len(picks) == 1:
        return Selection(indices, weights)
    by_index = indices.argsort()
    if selector.order is None or utility is None:
        key = torch.cat([torch.arange(0.5, len(pick)) / len(pick) for pick in picks])
    else:
        key = utility[indices] * (-1 if selector.order == "largest" else 1)
    order = by_index[key[by_index].argsort(stable=True)]
    return Selection(indices[order], None if weights is None else weights[order])


def _rescaled(selector: Selector, picks: list[Selection], groups: list[Group]) -> list[Tensor]:
    """The groups' weights. Of the "mean" kind: times n_c / N · K / K_c, so that what holds in each of the classes holds over all."""
    weights = [pick.weights for pick in picks if pick.weights is not None]
    if bool(weights) != (selector.weights is not None):
        raise ValueError(
            f"selector {selector.name!r} is registered with weights={selector.weights!r} and gives {len(weights)}; they must agree"
        )
    if selector.weights != "mean" or len(picks) == 1:
        return weights
    size, kept = sum(len(group.members) for group in groups), sum(len(pick) for pick in picks)
    return [w * (len(group.members) / size * kept / len(w)) for w, group in zip(weights, groups, strict=True)]
