"""Wrong labels by design, for studies of what a selection picks where labels are wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.selection.seeding import Stream, generator_for

NoiseKind = Literal["symmetric", "asymmetric"]


def with_wrong_labels(labels: Tensor, share: float, kind: NoiseKind, num_classes: int, seed: int, parts: Iterable[Tensor]) -> Tensor:
    """`labels` with ``round(share · n)`` wrong ones among the n samples of each class in each of `parts`, drawn at random.

    Args:
        labels: int64 ``[N]``, in 0..num_classes − 1.
        share: in [0, 1).
        kind: ``"symmetric"``: any other class, all alike; ``"asymmetric"``: the next class, (c + 1) mod num_classes.
        num_classes: at least 2.
        seed: of the draw.
        parts: disjoint sets of samples, int64 indices; a sample in none keeps its label.

    Raises:
        InputError: there is one class only.

    Source: both kinds are common. Asymmetric noise is that of Patrini et al., Making deep neural networks robust to label noise, CVPR 2017;
        theirs goes between chosen pairs of similar classes of CIFAR-10, and to the next class within each superclass of CIFAR-100.

    Example:
        >>> import torch
        >>> labels = torch.arange(3).repeat_interleave(4)
        >>> wrong = with_wrong_labels(labels, 0.25, "asymmetric", 3, seed=0, parts=[torch.arange(12)])
        >>> [(int(a), int(b)) for a, b in zip(labels, wrong) if a != b]
        [(0, 1), (1, 2), (2, 0)]
    """
    if num_classes < 2:
        raise InputError(f"label_noise needs a data set of at least 2 classes; got {num_classes}")
    result, generator = labels.clone(), generator_for(seed, Stream.LABEL_NOISE)
    for part in parts:
        for label in labels[part].unique():
            members = part[labels[part] == label]
            chosen = members[torch.randperm(len(members), generator=generator)[: round(share * len(members))]]
            steps = torch.randint(1, num_classes, (len(chosen),), generator=generator) if kind == "symmetric" else 1
            result[chosen] = (label + steps) % num_classes
    return result
