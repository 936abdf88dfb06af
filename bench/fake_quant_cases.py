"""Cases of `fastqat.fake_quantize` alone: how much of a copy's bandwidth its forward and its backward reach."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from .case import Case, Contender, Goal
from .fake_quant_work import COPY, backward_of, bytes_backward, bytes_forward, forward_of, ours, tensors

# shapes of one million and of 64 million elements, and how they share scales
GRANULARITIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "tensor": ((1024, 1024), (8192, 8192), {}),
    "channel": ((1024, 1024), (8192, 8192), {"axis": 0}),
    "channels_last": ((8, 128, 32, 32), (64, 256, 64, 64), {"axis": 1, "channels_last": True}),
    "group": ((1024, 1024), (8192, 8192), {"axis": 1, "group_size": 128}),
}
ABOUT = {
    "tensor": "one scale",
    "channel": "a scale per row",
    "channels_last": "a scale per channel, channels-last",
    "group": "a scale per 128 neighbours",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHARES = {("fp32", "1M"): 0.75, ("fp32", "64M"): 0.9, ("bf16", "1M"): 0.3, ("bf16", "64M"): 0.8}
PASSES = {"forward": (forward_of, bytes_forward), "backward": (backward_of, bytes_backward)}


def _case(way: str, granularity: str, dtype: str, size: str) -> Case:
    million, most, options = GRANULARITIES[granularity]
    shape = million if size == "1M" else most
    work, moved = PASSES[way]
    return Case(
        f"{way}/{granularity}-{dtype}-{size}",
        f"fake_quantize, {way}, {dtype} {list(shape)}, {ABOUT[granularity]}",
        tensors(shape, dtype=DTYPES[dtype], **options),
        Contender("fastqat", work(ours)),
        (COPY,),
        moved,
        goals=(Goal(COPY.name, SHARES[dtype, size], "share"),),
        quick=granularity == "tensor" and size == "1M",
        seconds=2,
    )


CASES = tuple(_case(way, granularity, dtype, size) for way, granularity, (dtype, size) in product(PASSES, GRANULARITIES, SHARES))
