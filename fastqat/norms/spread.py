"""A parameter with a copy of its values for each sample, and the functions that act on the copies one by one."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree

from .._errors import InputError

_NO_GRADIENT = (
    "size dim ndimension numel nelement stride element_size storage_offset get_device is_contiguous is_floating_point is_complex "
    "detach requires_grad_ register_hook register_post_accumulate_grad_hook zeros_like ones_like empty_like full_like rand_like randn_like "
    "new_zeros new_ones new_empty new_full new_tensor eq ne lt le gt ge isnan isfinite isinf repr str format len hash bool item tolist "
    "float int index"
)
_BROADCAST = "add radd iadd sub rsub isub subtract mul rmul imul multiply div truediv rtruediv itruediv divide true_divide"
PASSIVE = frozenset(_NO_GRADIENT.split())
DIFFERENTIABLE_GETTERS = frozenset(("T", "mT", "H", "mH", "real", "imag"))
ELEMENTWISE = frozenset(_BROADCAST.split())
_PLAIN = ELEMENTWISE | {"pow", "floordiv", "matmul"}  # which Python writes in place with an i before


class Spread(Tensor):
    """Looks like the parameter, or like what was made of it alone, and holds no values: only `Reads` can compute with it.

    Whatever gets hold of it elsewhere, as the inside of an autograd Function, would cut the samples' gradients off: it raises.

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
        spread: Spread = Tensor._make_wrapper_subclass(cls, plain.shape, plain.stride(), dtype=plain.dtype, device=plain.device)
        spread.rows, spread.plain, spread.origins = rows, plain, origins
        return spread

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # torch types no class method
        raise hidden_from_modes(list(spreads_in((args, kwargs))[0].shape), str(func))

    def __repr__(self) -> str:  # type: ignore[override]  # torch adds an argument for its own use
        return f"{type(self).__name__}({list(self.shape)}, dtype={self.dtype})"


def hidden_from_modes(shape: list[int], name: str) -> InputError:
    """The error where what is made of parameters would lose the samples' gradients."""
    return InputError(
        f"{shape}, made of parameters of the measured model, is given to {name} where it cannot be followed: in an autograd Function, a "
        "custom operator, a scripted function, a reentrant checkpoint, or after the block. Expand it to the batch before, or register a "
        "rule for the module (fastqat.norms.register_rule)"
    )


def is_passive(func: Any) -> bool:
    """Whether no gradient flows from the arguments of `func` to its result."""
    if func.__name__ in ("__get__", "__set__"):
        return getattr(func.__self__, "__name__", "") not in DIFFERENTIABLE_GETTERS
    return func.__name__.strip("_") in PASSIVE or func.__name__ in PASSIVE


def changes_spread(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether it would change a `Spread` itself, or wait for its gradient, which comes in parts."""
    name = func.__name__
    in_place = name.endswith("_") and not name.endswith("__")
    operator = name.startswith("__i") and name[3:-2] in _PLAIN
    named = operator or name in ("__set__", "__setitem__") or name.startswith(("register_", "retain_grad"))
    return isinstance(kwargs.get("out"), Spread) or ((in_place or named) and bool(args) and isinstance(args[0], Spread))


def spreads_in(tree: Any) -> list[Spread]:
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Spread)]


def follow(func: Any, args: Any, kwargs: Any, samples: int, constants: Container[Tensor]) -> Any:
    """What `func` makes of spread parameters: a `Spread`, or with a batch a tensor ``[N, ...]``; NotImplemented if it is not known.

    constants: tensors that are the same for all samples, whatever their shape.
    """
    name, spreads = func.__name__.strip("_"), spreads_in((args, kwargs))
    others = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not isinstance(leaf, Spread)]
    if name in ("expand", "repeat") and isinstance(args[0], Spread):
        sizes = _pytree.tree_leaves((args[1:], kwargs))
        if sizes[:1] == [samples] and _is_shared(args[0], len(sizes)):
            return func(_aligned(args[0], len(sizes)), *(sizes if name == "expand" else [1, *sizes[1:]]))
    batch = [x for x in others if x not in constants]
    if len(spreads) == len(batch) == len(others) == 1 and (name in ELEMENTWISE or name == "expand_as"):
        return _combine(func, args, kwargs, spreads[0], batch[0], samples)
    if name in ("to", "type_as"):
        others = []  # of which it takes the dtype
    in_place = func.__name__ == f"{name}_" or func is Tensor.__setitem__ or (name[:1] == "i" and name[1:] in _PLAIN)
    return NotImplemented if in_place or any(x not in constants or x.requires_grad for x in others) else _each(func, args, kwargs, spreads)


def _combine(func: Any, args: Any, kwargs: Any, spread: Spread, batch: Tensor, samples: int) -> Any:
    """A sum or a product, element by element, of each sample's values and its part of the batch."""
    own = spread.dim() == batch.dim() > 0 and spread.shape[0] == samples > 1  # element n belongs to sample n
    if batch.dim() == 0 or batch.shape[0] != samples or not (own or _is_shared(spread, batch.dim())):
        return NotImplemented
    rows = spread.rows.diagonal().movedim(-1, 0) if own else _aligned(spread, batch.dim())
    return func(*_pytree.tree_map_only(Spread, lambda _: rows, args), **kwargs)


def _is_shared(spread: Spread, dims: int) -> bool:
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

    versions = [spread.plain._version for spread in spreads]
    try:
        rows = vmap(run)(*(spread.rows for spread in spreads))
    except (RuntimeError, ValueError):
        return NotImplemented
    plain, origins = run(*(spread.plain for spread in spreads)), frozenset().union(*(spread.origins for spread in spreads))
    if versions != [spread.plain._version for spread in spreads]:  # as by F.relu(inplace=True)
        return NotImplemented
    made = [Spread.of(*pair, origins) for pair in zip(_pytree.tree_leaves(plain), _pytree.tree_leaves(rows), strict=True)]
    return _pytree.tree_unflatten(made, _pytree.tree_structure(plain))
