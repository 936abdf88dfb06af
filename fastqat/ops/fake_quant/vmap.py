"""torch.func.vmap of the fake quantization operators: one call for the whole batch, with one more dimension of scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Rows(NamedTuple):
    """A tensor ``[B, *shape]``, cut into the rows ``[B · scales, elements of one scale]`` of a call per channel along axis 0."""

    axis: int | None
    group_size: int | None

    def cut(self, x: Tensor) -> Tensor:
        """``[B, *shape]`` as rows."""
        if self.axis is None:
            return x.reshape(x.shape[0], -1)
        if self.group_size is None:
            return x.movedim(self.axis + 1, 1).flatten(0, 1).unsqueeze(-1).flatten(1)
        groups = x.unflatten(self.axis + 1, (x.shape[self.axis + 1] // self.group_size, self.group_size))
        return groups.movedim(self.axis + 2, -1).reshape(-1, self.group_size)

    def join(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `cut` for a result with `shape`, the batch included."""
        if self.axis is None:
            return rows.reshape(shape)
        d = self.axis + 1
        if self.group_size is None:
            return rows.reshape(shape[0], shape[d], *shape[1:d], *shape[d + 1 :]).movedim(1, d)
        groups = rows.reshape(*shape[:d], shape[d] // self.group_size, *shape[d + 1 :], self.group_size)
        return groups.movedim(-1, d + 1).flatten(d, d + 1)


def _batched(t: Tensor, dim: int | None, size: int) -> Tensor:
    """`t` with the batch in front, repeated where it has none."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


class _Call(NamedTuple):
    """One call for the batch: rows of x and of what is shaped like it, a scale and a zero point per row."""

    rows: _Rows
    wide: list[Tensor]
    scale: Tensor
    zero_point: Tensor | None
    options: tuple[Any, ...]

    def run(self, operator: Callable[..., Any]) -> Any:
        """What `operator` returns for the rows."""
        qmin, qmax, _, _, *rest = self.options
        zero_point = None if self.zero_point is None else self.zero_point.flatten()
        return operator(*(self.rows.cut(x) for x in self.wide), self.scale.flatten(), zero_point, qmin, qmax, 0, None, *rest)

    def join(self, found: Tensor) -> Tensor:
        """Rows as a batch of tensors like x."""
        return self.rows.join(found, self.wide[0].shape)


def _prepare(info: Any, in_dims: tuple[int | None, ...], *args: Any, wide: int) -> _Call:
    """The first `wide` arguments are shaped like x; scale, zero point, qmin, qmax, axis, group_size and the rest follow."""
    tensors = [None if t is None else _batched(t, dim, info.batch_size) for t, dim in zip(args[: wide + 2], in_dims, strict=False)]
    options = args[wide + 2 :]
    *xs, scale, zero_point = tensors
    return _Call(_Rows(*options[2:4]), xs, scale, zero_point, options)  # type: ignore[arg-type]  # only the zero point may be None


def values_rule(operator: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    """The rule of ``fake_quant`` and ``quantize_codes``."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        call = _prepare(info, in_dims, *args, wide=1)
        return call.join(call.run(operator)), 0

    return rule


def gradients_rule(operator: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[tuple[Tensor, ...], tuple[int | None, ...]]]:
    """The rule of ``fake_quant_backward``; a sum that nobody needs is empty, without a batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        call = _prepare(info, in_dims, *args, wide=2)
        grad_x, *sums = call.run(operator)
        needs = call.options[-2:]
        shaped = (s.reshape(call.scale.shape) if needed else s for s, needed in zip(sums, needs, strict=True))
        return (call.join(grad_x), *shaped), (0, *(0 if needed else None for needed in needs))

    return rule
