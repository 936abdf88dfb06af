"""The oracle of the norm tests: a loop of single-sample autograd in fp64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastqat as fq

Loss = Callable[[Tensor, Tensor], Tensor]
TOLERANCE = 1e-5


def sample_grads(model: nn.Module, x: Tensor, target: Tensor, loss: Loss = F.cross_entropy) -> list[dict[str, Tensor]]:
    """Per sample, the gradients of all parameters; those of parameters that are not used are left out."""
    wide = copy.deepcopy(model).double()
    counted = [p.requires_grad for p in wide.parameters()]
    for p in wide.parameters():
        p.requires_grad_(p.requires_grad or not any(counted))
    samples = []
    for row, label in zip(x.double() if x.is_floating_point() else x, target, strict=True):
        wide.zero_grad()
        loss(wide(row[None]), label[None]).backward()
        samples.append({name: p.grad for name, p in wide.named_parameters() if p.grad is not None})
    return samples


def norm_of(samples: list[dict[str, Tensor]], select: Callable[[str], bool] = lambda name: True) -> Tensor:
    """``[N]``: norm over the parameters that `select` takes."""
    squares = [
        sum((g.square().sum() for name, g in grads.items() if select(name)), torch.zeros((), dtype=torch.double)) for grads in samples
    ]
    return torch.stack(squares).sqrt() if squares else torch.zeros(0, dtype=torch.double)


def assert_close(got: Tensor, want: Tensor, tolerance: float = TOLERANCE, what: str = "norms") -> None:
    assert got.shape == want.shape, f"{what}: {list(got.shape)} against {list(want.shape)}"
    error = (got.double() - want).abs()
    assert bool((error <= tolerance * want.abs() + 1e-12).all()), f"{what}: {got.tolist()} against {want.tolist()}"


def measure(model: nn.Module, x: Tensor, target: Tensor, loss: Loss = F.cross_entropy, **options: Any) -> Any:
    """The norms of one pass with a loss that is a mean."""
    with fq.per_sample_grad_norms(model, **options) as norms:
        loss(model(x), target).backward()
    return norms


def check(model: nn.Module, x: Tensor, target: Tensor, loss: Loss = F.cross_entropy, tolerance: float = TOLERANCE, **options: Any) -> None:
    """Total and per-layer norms, all parameters trained and all frozen, against the oracle; gradients are those of a plain step."""
    model.requires_grad_(True)
    model.zero_grad()
    samples = sample_grads(model, x, target, loss)
    loss(model(x), target).backward()
    plain = {name: p.grad for name, p in model.named_parameters()}
    for trained in (True, False):
        model.zero_grad()
        model.requires_grad_(trained)
        norms = measure(model, x, target, loss, per_layer=True, **options)
        assert_close(norms.total, norm_of(samples), tolerance, f"total, trained={trained}")
        assert_close(norms.sq_total, norm_of(samples).square(), 2 * tolerance, f"squared total, trained={trained}")
        for layer, norm in norms.layers.items():
            owned = {f"{layer}.{name}".lstrip(".") for name, _ in model.get_submodule(layer).named_parameters()}
            nested = tuple(f"{other}." for other in norms.layers if other.startswith(f"{layer}." if layer else "") and other != layer)
            want = norm_of(samples, lambda name, owned=owned, nested=nested: name in owned and not name.startswith(nested))
            assert_close(norm, want, tolerance, f"layer {layer!r}, trained={trained}")
        for name, p in model.named_parameters():
            assert (p.grad is None) == (not trained or plain[name] is None), name
            if p.grad is not None:
                torch.testing.assert_close(p.grad, plain[name], msg=lambda text, name=name: f"{name}: {text}")
    model.requires_grad_(True)
    model.zero_grad()
