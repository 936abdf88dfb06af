"""Random streams that are a pure function of a seed and a few counters, so that resuming needs no generator state."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch

from fastqat.selection.budget import check_count


class Stream(IntEnum):
    """What the numbers are for: one seed gives independent streams to each."""

    SHUFFLE = 0
    SUBSET = 1
    RS2 = 2
    BATCH_NORM = 3
    AUGMENT = 4
    CALIBRATION = 5
    TORCH = 6
    FOLDS = 7
    THRESHOLD_SAMPLES = 8
    SELECT = 9
    BOUND = 10
    LABEL_NOISE = 11


def generator_for(seed: int, stream: Stream, *counters: int) -> torch.Generator:
    """A CPU generator whose numbers depend on ``(seed, stream, *counters)`` only; other arguments give independent numbers.

    Raises:
        InputError: `seed` or a counter is not a whole number ≥ 0.

    Example:
        >>> import torch
        >>> a, b = (torch.randperm(5, generator=generator_for(0, Stream.SHUFFLE, 3)) for _ in range(2))
        >>> torch.equal(a, b)
        True
    """
    entropy = check_count("seed", seed, least=0)
    key = (int(stream), *(check_count("a counter of a random stream", counter, least=0) for counter in counters))
    state = np.random.SeedSequence(entropy, spawn_key=key).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))
