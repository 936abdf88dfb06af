"""Rules by themselves: each against a loop of single-sample autograd in fp64, with the gradients of every subset of the parameters."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from fastqat.norms import Rule, find_rule


def rule_of(layer: nn.Module) -> Rule:
    rule = find_rule(layer)
    assert rule is not None and rule.refuses(layer) is None
    return rule


def sample_grads(layer: nn.Module, x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    """``[N, *parameter.shape]`` of each parameter, in the dtype of the layer."""
    grads: dict[str, list[Tensor]] = {name: [] for name, _ in layer.named_parameters()}
    for row, grad in zip(x, grad_y, strict=True):
        layer.zero_grad()
        layer(row[None]).backward(grad[None])
        for name, p in layer.named_parameters():
            assert p.grad is not None
            grads[name].append(p.grad.clone())
    return {name: torch.stack(grads[name]) if grads[name] else p.new_zeros(0, *p.shape) for name, p in layer.named_parameters()}


def sq_norm_of(grads: dict[str, Tensor], names: Any) -> Tensor:
    return torch.stack([grads[name].double().unsqueeze(-1).flatten(1).square().sum(1) for name in names]).sum(0)


def random_parameters(layer: nn.Module) -> nn.Module:
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


def check_rule(layer: nn.Module, x: Tensor, scale: float = 1.0, tolerance: float = 1e-5) -> None:
    """Norms of all subsets of the parameters relative to the oracle's, and the gradients themselves relative to their size."""
    rule = rule_of(layer)
    grad_y = torch.randn_like(layer(x)) * scale
    rounding = 2e-7 * grad_y.unsqueeze(-1).flatten(1).norm(dim=1).max().item() if x.numel() else 0.0  # of sums that cancel
    wide = copy.deepcopy(layer).double()
    want = sample_grads(wide, x.double() if x.is_floating_point() else x, grad_y.double())
    assert rule.parameters is None or set(want) <= rule.parameters
    names = sorted(want)
    for chosen in itertools.chain.from_iterable(itertools.combinations(names, k + 1) for k in range(len(names))):
        got, norms = rule.sq_norm(layer, x, grad_y, frozenset(chosen)), sq_norm_of(want, chosen)
        assert got.dtype == torch.float32 and got.shape == x.shape[:1]
        torch.testing.assert_close(got.double().sqrt(), norms.sqrt(), rtol=tolerance, atol=rounding)
        grads = rule.grads(layer, x, grad_y, frozenset(chosen))
        assert set(grads) == set(chosen)
        for name, grad in grads.items():
            assert grad.shape == want[name].shape and grad.dtype == torch.float32
            size = want[name].abs().amax().item() if grad.numel() else 0.0
            torch.testing.assert_close(grad.double(), want[name], rtol=tolerance, atol=tolerance * max(size, 1e-3 * scale) + rounding)


def check_half(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    """In bf16 or fp16: at most twice the error of torch's own gradient of each sample, which is rounded to that type."""
    layer, x = copy.deepcopy(layer).to(dtype), x.to(dtype)
    grad_y = torch.randn_like(layer(x))
    want = sq_norm_of(sample_grads(copy.deepcopy(layer).double(), x.double(), grad_y.double()), dict(layer.named_parameters())).sqrt()
    own = sq_norm_of(sample_grads(layer, x, grad_y), dict(layer.named_parameters())).sqrt()
    got = rule_of(layer).sq_norm(layer, x, grad_y, frozenset(dict(layer.named_parameters()))).double().sqrt()
    allowed = 2 * ((own - want) / want).abs().max() + 1e-5
    assert ((got - want) / want).abs().max() <= allowed
