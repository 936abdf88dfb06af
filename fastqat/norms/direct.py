"""Parameters that no layer holds, as a class token or the scale of a residual branch: followed where they are read.

A `TorchFunctionMode` sees every function of torch that a parameter is given to. In place of the parameter the function gets rows
``[N, *shape]``, the same values for each sample without a copy, whose gradient arrives per sample. It follows what touches the parameter
only, and products and sums with tensors that have the samples in dimension 0; everything else is refused, or left to torch.func. It also
notices a layer's parameter that is read outside of its layer, as a tied output layer does: its gradient would be missed.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from .._errors import InputError
from .calls import Call, in_backward
from .spread import Spread, follow, is_passive, spreads_in
from .targets import NO_RULE, Target

if TYPE_CHECKING:
    from .engine import Pass


class Reads(TorchFunctionMode):
    """Follows the parameters of the targets of one pass."""

    def __init__(self, measured: Pass):
        super().__init__()
        self._pass = measured
        self._owners: dict[int, list[Target]] = {}
        for target in measured.found.targets:
            for name in target.names:
                self._owners.setdefault(id(target.module.get_parameter(name)), []).append(target)
        self._spreads: dict[int, Spread] = {}
        self._seen: set[int] = set()
        self._by_func: set[int] = set()
        self._homes: dict[int, set[Call | None]] = {}  # calls of the owner that a parameter was followed in
        self._busy = False  # the mode may be on twice, see `Pass._watch`
        self._buffers = {id(buffer) for buffer in measured.model.buffers()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and not self._busy and not self._pass.muted and self._tracks((*args, *kwargs.values())):
            self._busy = True
            try:
                return self._read(func, args, kwargs)
            finally:
                self._busy = False
        return func(*args, **kwargs)

    def _tracks(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(self._tracks(part) for part in value)
        return type(value) is Spread or (isinstance(value, nn.Parameter) and id(value) in self._owners)

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        if is_passive(func):
            return func(*args, **kwargs)
        calls = {key: self._call_of(key) for key in self._parameters_in((args, kwargs))}
        if calls and all(call is not None and call.target.how != "direct" for call in calls.values()):
            return func(*args, **kwargs)  # by the layer itself
        for key, call in calls.items():
            self._seen.add(key)
            if call is None and all(owner.how != "direct" for owner in self._owners[key]):
                self._refuse_outside(func, key)
        spread_args, spread_kwargs = _pytree.tree_map_only(nn.Parameter, self._spread, (args, kwargs))
        result = follow(func, spread_args, spread_kwargs, self._samples(func), self._buffers)
        origins = {key for spread in spreads_in((spread_args, spread_kwargs)) for key in spread.origins}
        left = result is NotImplemented or not origins.isdisjoint(self._by_func)
        for key in origins:
            call = self._call_of(key)
            if left:
                self._leave_to_func(func, key, call)
            else:
                self._homes.setdefault(key, set()).add(call)
        if left:
            args, kwargs = _pytree.tree_map_only(Spread, lambda spread: spread.plain, (args, kwargs))
            return func(*args, **kwargs)
        return result

    def left_to_func(self, call: Call) -> set[str]:
        """The parameters of a direct target's call that torch.func has to measure."""
        keys = {name: id(call.target.module.get_parameter(name)) for name in call.target.names}
        if self._pass.func:  # handed to what torch does not show, as an autograd Function is, or not used at all
            self._by_func.update(key for key in keys.values() if key not in self._seen)
        return {name for name, key in keys.items() if key in self._by_func}

    def check_seen(self) -> None:
        """Refuse parameters that were not seen although their module ran."""
        for target in self._pass.found.targets:
            names = [n for n in sorted(target.names) if id(target.module.get_parameter(n)) not in self._seen | self._by_func]
            if target.how == "direct" and names and self._pass.calls[target.module]:
                raise InputError(
                    f"{', '.join(names)} of {target.label} was not seen where it is used: it is unused, or given to an autograd Function. "
                    f"{NO_RULE[0].upper()}{NO_RULE[1:]}"
                )

    def forget(self) -> None:
        """Drop what belongs to the pass."""
        self._spreads.clear()
        self._homes.clear()

    def _samples(self, func: Any) -> int:
        if self._pass.samples is None:
            raise InputError(f"a parameter is given to {_name(func)} before the model has seen its input, so the batch is not known")
        return self._pass.samples

    def _parameters_in(self, tree: Any) -> list[int]:
        leaves = _pytree.tree_leaves(tree)
        return [id(x) for x in leaves if isinstance(x, nn.Parameter) and id(x) in self._owners]

    def _call_of(self, key: int) -> Call | None:
        """The innermost running call of a module that owns the parameter."""
        return next((call for call in reversed(self._pass.open_calls) if call.target in self._owners[key]), None)

    def _spread(self, parameter: Tensor) -> Tensor:
        """The parameter's rows, watched; one per pass, so that its gradients are added up before they arrive."""
        key = id(parameter)
        if key not in self._owners:
            return parameter
        if key in self._spreads and not in_backward():
            return self._spreads[key]
        rows = parameter.expand(self._pass.samples, *parameter.shape)
        rows = self._pass.taps.watch(rows, (), partial(self._deliver, parameter), self._owners[key][0].label)
        spread = Spread.of(parameter, rows, frozenset((key,)))
        if not in_backward():
            self._spreads[key] = spread
        return spread

    def _deliver(self, parameter: Tensor, inputs: tuple[Tensor, ...], grads: Tensor) -> None:
        self._pass.arrived(grads)
        if id(parameter) not in self._by_func:
            self._pass.collector.add_grads(parameter, grads.to(torch.promote_types(grads.dtype, torch.float32)))

    def _leave_to_func(self, func: Any, key: int, call: Call | None) -> None:
        """Have the owner's call measured by torch.func, or refuse."""
        target = self._owners[key][0]
        if not self._pass.func:
            raise InputError(
                f"{target.label} gives a parameter of its own to {_name(func)}, which its per-sample gradient is not known through; followed "
                f"are sums and products with tensors of the batch, and what is made of the parameter alone: {NO_RULE}"
            )
        if call is None or not self._homes.get(key, set()) <= {call}:
            raise InputError(
                f"a parameter of {target.label} is given to {_name(func)}, and is used outside of this call of its module too, so torch.func "
                "cannot run the module for it; register a rule for the parts (fastqat.norms.register_rule)"
            )
        self._by_func.add(key)

    def _refuse_outside(self, func: Any, key: int) -> NoReturn:
        target = self._owners[key][0]
        raise InputError(
            f"a parameter of {target.label} is given to {_name(func)} outside of that layer's forward, so a part of its gradient would be "
            "missed. Call the layer instead, or move the operation out of the block (a penalty on weights is no part of a sample's loss)"
        )


def _name(func: Any) -> str:
    return func.__name__ if func.__name__ != "__get__" else f"the attribute {func.__self__.__name__}"
