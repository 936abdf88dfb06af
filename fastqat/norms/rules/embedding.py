"""Rules of embeddings, without a gradient of the size of the table: what a sample looks up more than once is added up first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .registry import Names, Rule, register_rule

_CHUNK = 1 << 21  # elements of a temporary


class Runs(NamedTuple):
    """The ids of each sample ``[N, T]`` in order, so that equal ones are neighbours: a run."""

    order: Tensor  # [N, T]: which position comes where
    lengths: Tensor  # [N, T]: of the first, second, ... run of the sample; 0 where there are fewer, and for padding


def _runs(ids: Tensor, padding_idx: int | None) -> Runs:
    ordered, order = ids.sort(dim=1, stable=True)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counted = torch.ones_like(ordered) if padding_idx is None else (ordered != padding_idx).to(ordered.dtype)
    return Runs(order, torch.zeros_like(ordered).scatter_add_(1, begins.cumsum(1) - 1, counted))


class _TableRule(Rule):
    """A table of rows of which each sample reads some."""

    parameters = frozenset({"weight"})
    deferrable = True

    def refuses(self, layer: nn.Embedding | nn.EmbeddingBag) -> str | None:
        if layer.scale_grad_by_freq:
            return "scale_grad_by_freq divides by counts over the batch, which mixes the samples; use scale_grad_by_freq=False"
        return None


@register_rule(nn.Embedding)
class EmbeddingRule(_TableRule):
    """x ``[N, ...]`` ids, grad_y ``[N, ..., D]``. Equal ids of a sample add up; `padding_idx` has no gradient."""

    def grads(self, layer: nn.Embedding, x: Tensor, grad_y: Tensor, names: Names) -> dict[str, Tensor]:
        ids, rows = _positions(x, grad_y)
        return {"weight": _scattered(ids, _without_padding(ids, rows, layer.padding_idx), layer.weight.shape)}

    def sq_norm(self, layer: nn.Embedding, x: Tensor, grad_y: Tensor, names: Names) -> Tensor:
        ids, rows = _positions(x, grad_y)
        step = max(_CHUNK // max(rows[:1].numel(), 1), 1)
        parts = [_repeated_sq_norm(ids[i : i + step], rows[i : i + step], layer.padding_idx) for i in range(0, max(ids.shape[0], 1), step)]
        return torch.cat(parts).to(torch.promote_types(grad_y.dtype, torch.float32))


@register_rule(nn.EmbeddingBag)
class EmbeddingBagRule(_TableRule):
    """x ``[N, T]`` ids, grad_y ``[N, D]``: the sum or the mean of a sample's rows, `padding_idx` left out."""

    def refuses(self, layer: nn.Embedding | nn.EmbeddingBag) -> str | None:
        if isinstance(layer, nn.EmbeddingBag) and layer.mode == "max":
            return "mode 'max' has no rule; use 'sum' or 'mean'"
        return super().refuses(layer)

    def grads(self, layer: nn.EmbeddingBag, x: Tensor, grad_y: Tensor, names: Names) -> dict[str, Tensor]:
        wide = torch.promote_types(grad_y.dtype, torch.float32)
        share = grad_y.to(wide) / _count(layer, x).to(wide)[:, None]
        rows = share[:, None].expand(-1, x.shape[1], -1)
        return {"weight": _scattered(x, _without_padding(x, rows, layer.padding_idx), layer.weight.shape)}

    def sq_norm(self, layer: nn.EmbeddingBag, x: Tensor, grad_y: Tensor, names: Names) -> Tensor:
        wide = torch.promote_types(grad_y.dtype, torch.float32)
        times = _runs(x, layer.padding_idx).lengths.to(wide) / _count(layer, x).to(wide)[:, None]
        return grad_y.to(wide).square().sum(1) * times.square().sum(1)


def _positions(x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    """Ids ``[N, T]`` and gradients ``[N, T, D]``."""
    if x.dim() == 1:
        return x.unsqueeze(1), grad_y.unsqueeze(1)
    return x.flatten(1), grad_y.flatten(1, -2)


def _without_padding(ids: Tensor, rows: Tensor, padding_idx: int | None) -> Tensor:
    """`rows` ``[N, T, D]`` in fp32 or fp64, 0 at the padding."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows if padding_idx is None else rows.masked_fill((ids == padding_idx)[..., None], 0)


def _scattered(ids: Tensor, rows: Tensor, table: torch.Size) -> Tensor:
    """``[N, V, D]``: the rows of each sample added up in the places of their ids."""
    grads = rows.new_zeros(ids.shape[0], *table)
    samples = torch.arange(ids.shape[0], device=ids.device)[:, None].expand_as(ids)
    return grads.index_put_((samples, ids), rows, accumulate=True)


def _repeated_sq_norm(ids: Tensor, rows: Tensor, padding_idx: int | None) -> Tensor:
    """Σ over distinct ids of ‖sum of their rows‖², in fp64."""
    order, lengths = _runs(ids, None)
    rows = _without_padding(ids, rows, padding_idx).to(torch.float64)
    ordered = rows.gather(1, order[..., None].expand_as(rows))
    sums = torch.segment_reduce(ordered.flatten(0, 1), "sum", lengths=lengths.flatten(), unsafe=True, initial=0)
    return sums.unflatten(0, lengths.shape).square().sum((1, 2))


def _count(layer: nn.EmbeddingBag, ids: Tensor) -> Tensor:
    """What the sum of each sample's rows is divided by ``[N]``."""
    if layer.mode == "sum":
        return ids.new_ones(ids.shape[0])
    used = ids.shape[1] if layer.padding_idx is None else (ids != layer.padding_idx).sum(1)
    return torch.as_tensor(used, device=ids.device).expand(ids.shape[0]).clamp_min(1)
