"""Cases for a GPU: `fastqat.fake_quantize` against the device's own copy, against LSQ by other means, and on tensors that only launch.

At the size ``"small"`` they also run on a CPU, for the tests of agreement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import feature_kl_cases, gpu_norm_cases, gpu_step_cases, score_cases
from .case import Case, Contender, Goal, Results, Size, Work, needs_package
from .fake_quant_work import (
    COPY,
    QMAX,
    QMIN,
    Inputs,
    Setup,
    backward_of,
    bytes_backward,
    bytes_both,
    bytes_forward,
    forward_of,
    ours,
    tensors,
    trained,
)
from .gpu_all_cases import CASES as ALL_CASES
from .peers import BREVITAS, COMPILED, EAGER, LEARNABLE, LEARNABLE_FP32, TORCHAO

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Granularity:
    """How scales are shared, and the shapes that are measured: one size by name, and a tiny one for the tests of agreement."""

    about: str
    shapes: dict[str, tuple[int, ...]]
    tiny: tuple[int, ...]
    options: dict[str, Any]

    def setup(self, size: str, dtype: str) -> Setup:
        """The set-up of one size on the device."""

        def build(wanted: Size) -> Inputs:
            shape = self.tiny if wanted == "small" else self.shapes[size]
            return tensors(shape, dtype=DTYPES[dtype], device=DEVICE, **self.options)("full")

        return build


SQUARE = {"16M": (4096, 4096), "64M": (8192, 8192), "256M": (16384, 16384)}
PICTURES = {"16M": (64, 256, 32, 32), "64M": (256, 256, 32, 32), "256M": (1024, 256, 32, 32)}
GRANULARITIES = {
    "tensor": Granularity("one scale", SQUARE, (64, 96), {}),
    "channel0": Granularity("a scale per row", SQUARE, (48, 96), {"axis": 0}),
    "channel1": Granularity("a scale per channel of [N, C, H, W]", PICTURES, (3, 16, 5, 5), {"axis": 1}),
    "channels_last": Granularity("a scale per channel, channels-last", PICTURES, (3, 16, 4, 4), {"axis": 1, "channels_last": True}),
    "odd_rows": Granularity("a scale per channel of [N, C, 7, 7]", {"64M": (674, 2032, 7, 7)}, (3, 5, 7, 7), {"axis": 1}),
    "group": Granularity("a scale per 128 neighbours", SQUARE, (16, 384), {"axis": 1, "group_size": 128}),
}
PASSES = {"forward": (forward_of, bytes_forward), "backward": (backward_of, bytes_backward)}


def _share_case(way: str, granularity: str, dtype: str, size: str) -> Case:
    kind, (work, moved) = GRANULARITIES[granularity], PASSES[way]
    return Case(
        f"gpu/{way}/{granularity}-{dtype}-{size}",
        f"fake_quantize on a GPU, {way}, {dtype} {list(kind.shapes[size])}, {kind.about}",
        kind.setup(size, dtype),
        Contender("fastqat", work(ours)),
        (COPY,),
        moved,
        goals=(Goal(COPY.name, 0.9, "share"),),
        quick=size == "64M",
        seconds=0.5,
        device="cuda",
        clock="cold",
    )


def _aimet(inputs: Inputs) -> Work:
    from aimet_torch.quantization.affine import quantize_dequantize

    zero = torch.zeros_like(inputs.broadcast_scale)
    return trained(lambda own, x, scale: quantize_dequantize(x, scale, zero, qmin=QMIN, qmax=QMAX), broadcast=True)(inputs)


# It rounds halves up and has no gradient factor.
AIMET = Contender("aimet", _aimet, reason=needs_package("aimet_torch"), agrees=())


def _lsq_case(granularity: str, dtype: str, size: str) -> Case:
    kind = GRANULARITIES[granularity]
    peers = (LEARNABLE if dtype == "fp32" else LEARNABLE_FP32, EAGER, COMPILED, AIMET, BREVITAS, TORCHAO)
    return Case(
        f"gpu/lsq/{granularity}-{dtype}-{size}",
        f"LSQ forward + backward on a GPU, {dtype} {list(kind.shapes[size])}, {kind.about}",
        kind.setup(size, dtype),
        Contender("fastqat", trained(ours)),
        (COPY, *peers),
        bytes_both,
        goals=tuple(Goal(peer.name, 1 / 1.2) for peer in peers),
        quick=size == "64M",
        seconds=1.0,
        device="cuda",
        clock="cold",
        tolerance=2e-3 if dtype == "fp32" else 3e-2,
    )


CALLS = 20  # of a small tensor, one after another


def _one_after_another(call: Callable[[], Results]) -> Work:
    """`CALLS` calls and a wait for the last: what the host needs to launch them counts."""

    def calls() -> Results:
        for _ in range(CALLS):
            results = call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return results

    return Work(calls)


def _in_a_graph(call: Callable[[], Results]) -> Work:
    """The same calls recorded once and replayed: only the device's own time is left."""
    if DEVICE == "cpu":
        return _one_after_another(call)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph, results = torch.cuda.CUDAGraph(), {}
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            results = call()

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return results

    return Work(replay)


WAYS = {"eager": (_one_after_another, "host", 5.0), "graph": (_in_a_graph, "stream", 2.0)}


def _small_case(way: str, size: str, side: int) -> Case:
    repeated, clock, ratio = WAYS[way]

    def many(quantize: Callable[[Inputs, Tensor, Tensor], Tensor]) -> Callable[[Inputs], Work]:
        return lambda inputs: repeated(forward_of(quantize)(inputs).call)

    clamp = Contender("torch.clamp", many(lambda inputs, x, scale: torch.clamp(x, QMIN, QMAX)), agrees=())
    return Case(
        f"gpu/small/{way}-{size}",
        f"{CALLS} forwards of {size} fp32 on a GPU, {'each launched' if way == 'eager' else 'in a CUDA graph'}",
        tensors((side, side), device=DEVICE),
        Contender("fastqat", many(ours)),
        (clamp,),
        goals=(Goal("torch.clamp", ratio),),
        seconds=0.5,
        device="cuda",
        clock=clock,  # type: ignore[arg-type]  # one of the names that Case accepts
    )


CASES = (
    *(_share_case(*key) for key in product(PASSES, GRANULARITIES, DTYPES, SQUARE) if key[3] in GRANULARITIES[key[1]].shapes),
    *(_lsq_case(*key) for key in product(("tensor", "channel0", "channel1"), DTYPES, ("16M", "64M"))),
    *(_small_case(way, size, side) for way, (size, side) in product(WAYS, {"4k": 64, "64k": 256, "256k": 512}.items())),
    *ALL_CASES,
    *gpu_norm_cases.CASES,
    *gpu_step_cases.CASES,
    *score_cases.GPU_CASES,
    *feature_kl_cases.GPU_CASES,
)
