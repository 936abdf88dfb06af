"""A parameter with a copy of its values for each sample, and the functions that act on the copies one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree

_NO_GRADIENT = (
    "size dim ndimension numel nelement stride element_size storage_offset data_ptr get_device is_contiguous is_floating_point is_complex "
    "detach requires_grad_ register_hook register_post_accumulate_grad_hook zeros_like ones_like empty_like full_like rand_like randn_like "
    "new_zeros new_ones new_empty new_full new_tensor eq ne lt le gt ge isnan isfinite isinf repr str format len hash bool"
)
_BROADCAST = "add radd iadd sub rsub isub subtract mul rmul imul multiply div truediv rtruediv itruediv divide true_divide"
PASSIVE = frozenset(_NO_GRADIENT.split())
DIFFERENTIABLE_GETTERS = frozenset(("T", "mT", "H", "mH", "real", "imag"))
ELEMENTWISE = frozenset(_BROADCAST.split())


class Spread(Tensor):
    """Looks like the parameter, or like what was made of it alone.

    Attributes:
        rows: ``[N, *shape]``, with the gradient of each sample.
        plain: the same without samples, in the graph of the parameter.
        origins: ids of the parameters that it was made of.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch writes it; `Reads` sees every use

    rows: Tensor
    plain: Tensor
    origins: frozenset[int]

    @classmethod
    def of(cls, plain: Tensor, rows: Tensor, origins: frozenset[int]) -> Spread:
        spread = plain.detach().as_subclass(cls)
        spread.rows, spread.plain, spread.origins = rows, plain, origins
        return spread


def is_passive(func: Any) -> bool:
    """Whether no gradient flows from the arguments of `func` to its result."""
    if func.__name__ in ("__get__", "__set__"):
        return getattr(func.__self__, "__name__", "") not in DIFFERENTIABLE_GETTERS
    return func.__name__.strip("_") in PASSIVE or func.__name__ in PASSIVE


def spreads_in(tree: Any) -> list[Spread]:
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Spread)]


def follow(func: Any, args: Any, kwargs: Any, samples: int, constants: set[int]) -> Any:
    """What `func` makes of spread parameters: a `Spread`, or with a batch a tensor ``[N, ...]``; NotImplemented if it is not known.

    constants: ids of tensors that have no samples, whatever their shape.
    """
    name, spreads = func.__name__.strip("_"), spreads_in((args, kwargs))
    in_place = func.__name__ == f"{name}_" or (name[:1] == "i" and name in ELEMENTWISE)
    others = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not isinstance(leaf, Spread)]
    if in_place and isinstance(args[0], Spread):
        return NotImplemented
    if name in ("expand", "repeat") and isinstance(args[0], Spread):
        sizes = _pytree.tree_leaves((args[1:], kwargs))
        if sizes[:1] == [samples] and _reaches(args[0], len(sizes)):
            return func(_aligned(args[0], len(sizes)), *(sizes if name == "expand" else [1, *sizes[1:]]))
    batch = [x for x in others if id(x) not in constants and not isinstance(x, nn.Parameter) and x.dim() and x.shape[0] == samples]
    if len(spreads) == len(batch) == len(others) == 1 and (name in ELEMENTWISE or name == "expand_as"):
        if not _reaches(spreads[0], batch[0].dim()):
            return NotImplemented
        rows = _aligned(spreads[0], batch[0].dim())
        return func(*_pytree.tree_map_only(Spread, lambda _: rows, args), **kwargs)
    if name not in ("to", "type_as") and (in_place or batch or any(x.requires_grad for x in others)):
        return NotImplemented
    return _each(func, args, kwargs, spreads)


def _reaches(spread: Spread, dims: int) -> bool:
    """Whether its shape, broadcast to `dims` dimensions, leaves dimension 0 to the samples."""
    return spread.dim() < dims or (spread.dim() == dims and spread.shape[0] == 1)


def _aligned(spread: Spread, dims: int) -> Tensor:
    """Its rows as a batch of `dims` dimensions."""
    shape = (*[1] * (dims - spread.dim()), *spread.shape)[1:]
    return spread.rows.reshape(spread.rows.shape[0], *shape)


def _each(func: Any, args: Any, kwargs: Any, spreads: list[Spread]) -> Any:
    """`func` on each sample's values: what it makes of parameters and constants alone."""
    leaves, spec = _pytree.tree_flatten((args, kwargs))

    def run(*values: Tensor) -> Any:
        rest = iter(values)
        args, kwargs = _pytree.tree_unflatten([next(rest) if isinstance(leaf, Spread) else leaf for leaf in leaves], spec)
        return func(*args, **kwargs)

    try:
        rows = vmap(run)(*(spread.rows for spread in spreads))
    except (RuntimeError, ValueError):
        return NotImplemented
    plain, origins = run(*(spread.plain for spread in spreads)), frozenset().union(*(spread.origins for spread in spreads))
    made = [Spread.of(*pair, origins) for pair in zip(_pytree.tree_leaves(plain), _pytree.tree_leaves(rows), strict=True)]
    return _pytree.tree_unflatten(made, _pytree.tree_structure(plain))
