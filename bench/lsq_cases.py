"""Cases of LSQ forward and backward against every other way to have it: by size, and at one million by granularity, layout and dtype."""

from __future__ import annotations

from typing import Any

import torch

from .case import Case, Contender, Goal
from .fake_quant_work import COPY, Setup, bytes_both, ours, tensors, trained
from .peers import BREVITAS, COMPILED, EAGER, LEARNABLE, LEARNABLE_FP32, LEARNABLE_GROUPS, NNCF, NNCF_BF16, TORCHAO

SIDES = {"4k": 64, "64k": 256, "1M": 1024, "16M": 4096, "64M": 8192}
MILLION = "1M"


def _case(
    variant: str, size: str, about: str, setup: Setup, learnable: Contender = LEARNABLE, nncf: Contender = NNCF, **options: Any
) -> Case:
    peers = (learnable, EAGER, COMPILED, BREVITAS, TORCHAO, nncf)
    ratio = 1 / 3 if size == MILLION else 1.0
    return Case(
        f"lsq/{variant}-{size}",
        f"LSQ forward + backward, {about}",
        setup,
        Contender("fastqat", trained(ours)),
        (COPY, *peers),
        bytes_both,
        goals=tuple(Goal(peer.name, ratio) for peer in peers),
        **{"tolerance": 2e-3, "quick": False, "seconds": 6, **options},
    )


def _by_size(size: str) -> Case:
    side = SIDES[size]
    return _case("tensor", size, f"{size} fp32, one scale", tensors((side, side)), quick=size == MILLION)


CASES = (
    *map(_by_size, SIDES),
    _case("channel", MILLION, "1M fp32 weights [256, 256, 4, 4], a scale per output channel", tensors((256, 256, 4, 4), axis=0)),
    _case("channels_last", MILLION, "1M fp32 [8, 128, 32, 32], channels-last, one scale", tensors((8, 128, 32, 32), channels_last=True)),
    _case("group", MILLION, "1M fp32, a scale per 128", tensors((1024, 1024), axis=1, group_size=128), LEARNABLE_GROUPS),
    _case(
        "bf16", MILLION, "1M bfloat16, one scale", tensors((1024, 1024), dtype=torch.bfloat16), LEARNABLE_FP32, NNCF_BF16, tolerance=2e-2
    ),
)
