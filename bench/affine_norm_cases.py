"""Cases of per-sample gradient norms of layers that normalise: one read of x and grad_y against a copy, and against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastqat import use_backend
from fastqat.ops.affine_grad_norm import op
from fastqat.ops.affine_grad_norm.reference import Statistics

from .case import Case, Contender, Goal, Size, Work

BATCH = 64


@dataclass(frozen=True)
class Layer:
    """A layer's input and the gradient of its output ``[N, C, T]``, and its statistics."""

    x: Tensor
    grad_y: Tensor
    statistics: Statistics


def _setup(channels: int, positions: int, tokens: bool, statistics: Callable[[int], Statistics]) -> Callable[[Size], Layer]:
    def setup(size: Size) -> Layer:
        torch.manual_seed(0)
        samples = 2 if size == "small" else BATCH
        x, grad_y = (torch.randn(samples, *((positions, channels) if tokens else (channels, positions))) for _ in range(2))
        return Layer(x.mT if tokens else x, grad_y.mT if tokens else grad_y, statistics(channels))

    return setup


def _norms(layer: Layer) -> Work:
    return Work(lambda: {"sq_norm": op.sq_norm(*_operands(layer))})


def _plain(layer: Layer) -> Work:
    def call() -> dict[str, Tensor]:
        with use_backend("reference"):
            return {"sq_norm": op.sq_norm(*_operands(layer))}

    return Work(call)


def _operands(layer: Layer) -> tuple[Tensor, Tensor, Statistics]:
    return layer.x, layer.grad_y, layer.statistics


def _copy(layer: Layer) -> Work:
    return Work(lambda: {"copy": layer.x.clone()}, moved=2 * layer.x.nbytes)


def _running(channels: int) -> Statistics:
    return Statistics("given", torch.zeros(channels), torch.ones(channels), eps=1e-5)


def _groups(channels: int) -> Statistics:
    return Statistics("group", groups=min(channels, 32), eps=1e-5)


def _positions(channels: int) -> Statistics:
    return Statistics("position", eps=1e-5)


def _case(name: str, about: str, setup: Callable[[Size], Layer]) -> Case:
    return Case(
        f"norms/{name}",
        f"gradient norms of {about}, batch {BATCH}, fp32",
        setup,
        Contender("fastqat", _norms),
        (Contender("x.clone()", _copy, agrees=()), Contender("plain torch", _plain)),
        moved=lambda layer: layer.x.nbytes + layer.grad_y.nbytes,
        goals=(Goal("x.clone()", 0.75, "share"),),
        quick=False,
        seconds=2,
    )


CASES = (
    _case("batchnorm", "BatchNorm in eval mode, 64 channels of 32²", _setup(64, 32 * 32, False, _running)),
    _case("groupnorm", "GroupNorm, 64 channels of 32² in 32 groups", _setup(64, 32 * 32, False, _groups)),
    _case("layernorm", "LayerNorm, 64 tokens of width 192", _setup(192, 64, True, _positions)),
)
