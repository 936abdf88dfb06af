"""Parameters that no layer holds, as a class token or the scale of a residual branch: followed where they are read.

A `TorchFunctionMode` sees every function of torch that a parameter is given to. In place of the parameter the function gets rows
``[N, *shape]``, the same values for each sample without a copy, whose gradient arrives per sample. It follows what touches the parameter
only, and products and sums with tensors that have the samples in dimension 0; everything else is refused, or left to torch.func. Functions
that are the forward of a layer with a rule, as `F.linear`, are measured by the rule. All this holds for a layer's parameters too where they
are read outside of the layer, as by a tied output layer: watching layers alone would miss it.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils.checkpoint import CheckpointFunction

from .._errors import InputError
from .calls import Call, in_backward
from .constants import Constants
from .functional import Applied, recognise
from .refusals import BACKWARD, check_backward, check_known, check_statistics, enclosing_function, name_of, not_followed
from .spread import Spread, changes_spread, follow, hidden_from_modes, is_passive, spreads_in
from .taps import Receive
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
            for parameter in target.parameters.values():
                self._owners.setdefault(id(parameter), []).append(target)
        self._spreads: dict[int, Spread] = {}
        self._seen: set[int] = set()
        self._by_func: set[int] = set()
        self._uses: Counter[int] = Counter()
        self._hidden: Counter[int] = Counter()  # reads inside of a reentrant checkpoint, less those in the backward pass
        self._in_functions: set[int] = set()  # read inside of an autograd Function
        self._homes: dict[int, set[Call | None]] = {}  # calls of the owner that a parameter was followed in
        self._busy = False  # the mode may be on twice, see `Pass._watch`
        self.constants = Constants(measured.is_input)
        self.same: dict[nn.Module, set[bool]] = {}  # whether a layer's inputs were the same for all samples

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._busy or self._pass.muted:
            return func(*args, **kwargs)
        if func in BACKWARD and not self._pass.differentiates():
            check_backward(func, args, kwargs, set(self._owners) if self._pass.samples is not None else set())
            return func(*args, **kwargs)
        result = (self._given if self._tracks(args, kwargs) else self._plain)(func, args, kwargs)
        if self._pass.samples is not None:
            self.constants.note(func, result, args, kwargs)
        return result

    def _plain(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A function that gets no parameter, or not its gradient."""
        if self._pass.samples is not None and torch.is_grad_enabled():
            check_statistics(func, args, kwargs)
        return func(*args, **kwargs)

    def _given(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A function that gets parameters that are followed."""
        calls = self._pass.open_calls
        if calls and calls[-1].target.how not in ("rule", "direct"):
            self.check_arguments(calls[-1])
        if changes_spread(func, args, kwargs):
            self._refuse(func, next(iter(spreads_in((args, kwargs))[0].origins)), args, kwargs)
        passive = is_passive(func)
        if torch.is_grad_enabled() and not passive:
            self._busy = True
            try:
                return self._read(func, args, kwargs)
            finally:
                self._busy = False
        if not passive:
            self._note_hidden(func, args, kwargs)
        args, kwargs = _pytree.tree_map_only(Spread, lambda spread: spread.plain, (args, kwargs))
        return self._plain(func, args, kwargs)

    def _tracks(self, args: Any, kwargs: Any) -> bool:
        """Whether a parameter is among the arguments that the innermost running layer does not own; asked for every function."""
        calls = self._pass.open_calls
        own = calls[-1].target.keys if calls else ()
        for value in (*args, *kwargs.values()) if kwargs else args:
            key, kind = id(value), type(value)
            if (key in self._owners and key not in own) or kind is Spread:
                return True
            if (kind is tuple or kind is list) and self._tracks(value, None):
                return True
        return False

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        calls = {key: self._call_of(key) for key in self._parameters_in((args, kwargs))}
        spreads = spreads_in((args, kwargs))
        if not spreads and calls and all(call is not None and call.target.how != "direct" for call in calls.values()):
            return self._plain(func, args, kwargs)  # by the layer itself
        check_statistics(func, args, kwargs)
        check_known(func, self._pass.samples)
        assert self._pass.samples is not None
        for key in calls:
            self._seen.add(key)
            if in_backward():
                self._hidden[key] -= 1
        applied = recognise(func, args, kwargs, self._pass.samples)
        if applied is not None and self._measurable(applied, calls):
            return self._apply(func, args, kwargs, applied)
        for key, call in calls.items():
            if call is None and any(owner.how == "quantized" for owner in self._owners[key]):
                self._refuse_outside(func, key)
        return self._follow(func, args, kwargs)

    def _measurable(self, applied: Applied, calls: dict[int, Call | None]) -> bool:
        """Whether its parameters are read as they are, and none is a quantized layer's, which measures itself."""
        own = {id(parameter) for parameter in applied.parameters.values() if id(parameter) in self._owners}
        quantized = any(owner.how == "quantized" for key in own for owner in self._owners[key])
        return own == set(calls) and own.isdisjoint(self._by_func) and not quantized and not spreads_in(list(applied.parameters.values()))

    def _apply(self, func: Any, args: Any, kwargs: Any, applied: Applied) -> Tensor:
        """Run a function that is a layer with a rule, and watch what it makes."""
        parameters = {name: p for name, p in applied.parameters.items() if id(p) in self._owners}
        for parameter in parameters.values():
            self._count(id(parameter))
            self._homes.setdefault(id(parameter), set()).add(self._call_of(id(parameter)))
        owner = self._owners[id(next(iter(parameters.values())))][0]
        assert applied.x is not None
        receive = partial(self._deliver_layer, applied._replace(x=None), parameters, owner.name)
        return self._pass.taps.watch(func(*args, **kwargs), (applied.x,), receive, f"{name_of(func)} in {owner.label}")

    def _deliver_layer(
        self, applied: Applied, parameters: dict[str, Tensor], owner: str, inputs: tuple[Tensor, ...], grad_y: Tensor
    ) -> None:
        self._pass.arrived(grad_y)
        counted = {name: parameter for name, parameter in parameters.items() if id(parameter) not in self._by_func}
        if counted:
            x = _as_differentiated(inputs[0], grad_y)
            self._pass.collector.add_layer(owner, applied.rule, applied.layer, x, grad_y, counted)

    def _count(self, key: int) -> None:
        """Note a use of a parameter; gradients of several uses are added up."""
        self._uses[key] += 1
        if self._uses[key] > 1 or in_backward() or any(owner.how != "direct" for owner in self._owners[key]):
            self._pass.collector.several.add(key)

    def _follow(self, func: Any, args: Any, kwargs: Any) -> Any:
        spread_args, spread_kwargs = _pytree.tree_map_only(nn.Parameter, self._spread, (args, kwargs))
        assert self._pass.samples is not None
        result = follow(func, spread_args, spread_kwargs, self._pass.samples, self.constants)
        origins = {key for spread in spreads_in((spread_args, spread_kwargs)) for key in spread.origins}
        left = result is NotImplemented or not origins.isdisjoint(self._by_func)
        for key in origins:
            call = self._call_of(key)
            if left:
                self._leave_to_func(func, key, call, args, kwargs)
            else:
                self._homes.setdefault(key, set()).add(call)
        if not left:
            return result
        args, kwargs = _pytree.tree_map_only(Spread, lambda spread: spread.plain, (args, kwargs))
        return func(*args, **kwargs)

    def _note_hidden(self, func: Any, args: Any, kwargs: Any) -> None:
        """A parameter is read without gradients: by a reentrant checkpoint it will be read again in the backward pass."""
        if in_backward():
            return
        keys, function = self._parameters_in((args, kwargs)), enclosing_function()
        self._pass.collector.several.update(keys)
        if function is None:
            return
        for spread in spreads_in((args, kwargs)):
            raise hidden_from_modes(list(spread.shape), name_of(func))
        (self._hidden if function is CheckpointFunction else self._in_functions).update(keys)

    def left_to_func(self, call: Call) -> set[str]:
        """The parameters of a direct target's call that torch.func has to measure."""
        keys = {name: id(parameter) for name, parameter in call.target.parameters.items()}
        if self._pass.func:  # handed to what torch does not show, as an autograd Function is, or not used at all
            self._by_func.update(key for key in keys.values() if key not in self._seen)
        names = {name for name, key in keys.items() if key in self._by_func}
        if names:
            self.check_arguments(call)
        return names

    def check_arguments(self, call: Call) -> None:
        """Refuse what is the same for all samples where only a batch can be measured."""
        for x in (x for x in call.leaves if isinstance(x, Spread) or id(x) in self._owners):
            raise InputError(
                f"{call.target.label} is given {list(x.shape)}, made of parameters alone and so the same for all samples, for which "
                "it cannot be measured; expand it to the batch before, as in `queries.expand(len(x), -1, -1)`"
            )

    def check_seen(self) -> None:
        """Refuse parameters that were not seen although their module ran, or not seen again in a reentrant checkpoint."""
        for key in self._hidden.keys() - self._by_func:
            if self._hidden[key] > 0:
                raise InputError(
                    f"a parameter of {self._owners[key][0].label} is read inside of a reentrant checkpoint, which hides it; pass "
                    "use_reentrant=False to torch.utils.checkpoint"
                )
        seen = (self._seen - self._in_functions) | self._by_func
        for target in self._pass.found.targets:
            if target.how != "direct" or not self._pass.calls[target.module]:
                continue
            names = [name for name, parameter in target.parameters.items() if id(parameter) not in seen]
            if names:
                raise InputError(
                    f"{', '.join(names)} of {target.label} was not seen where it is used: it is unused, or given to an autograd Function. "
                    f"{NO_RULE[0].upper()}{NO_RULE[1:]}"
                )

    def forget(self) -> None:
        """Drop what belongs to the pass."""
        self._spreads.clear()
        self._homes.clear()
        self.constants.forget()
        self.same.clear()

    def _parameters_in(self, tree: Any) -> list[int]:
        return [id(x) for x in _pytree.tree_leaves(tree) if id(x) in self._owners]

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
        self._count(key)
        spread = self._spread_of(parameter, (), partial(self._deliver, parameter), self._owners[key][0])
        if not in_backward():
            self._spreads[key] = spread
        return spread

    def spread_output(self, call: Call, x: Tensor, y: Tensor) -> Spread:
        """The output of a layer that read the same for all samples, as the positions of tokens: each sample gets a copy.

        For layers that act on the last dimensions and leave the others free: the samples are put before them.
        """
        target = call.target

        def deliver(inputs: tuple[Tensor, ...], grads: Tensor) -> None:
            assert target.rule is not None
            self._pass.arrived(grads)
            rows = _as_differentiated(inputs[0], grads).expand(grads.shape[0], *inputs[0].shape)
            self._pass.collector.add_layer(target.name, target.rule, target.module, rows, grads, target.parameters)

        return self._spread_of(y, (x,), deliver, target)

    def _spread_of(self, values: Tensor, inputs: tuple[Tensor, ...], receive: Receive, target: Target) -> Spread:
        assert self._pass.samples is not None
        rows = self._pass.taps.watch(values.expand(self._pass.samples, *values.shape), inputs, receive, target.label)
        return Spread.of(values, rows, frozenset((id(values),)) if id(values) in self._owners else target.keys)

    def _deliver(self, parameter: Tensor, inputs: tuple[Tensor, ...], grads: Tensor) -> None:
        self._pass.arrived(grads)
        if id(parameter) not in self._by_func:
            self._pass.collector.add_grads(parameter, grads.to(torch.promote_types(grads.dtype, torch.float32)))

    def _leave_to_func(self, func: Any, key: int, call: Call | None, args: Any, kwargs: Any) -> None:
        """Have the owner's call measured by torch.func, or refuse."""
        if not self._pass.func:
            self._refuse(func, key, args, kwargs)
        if call is None or not self._homes.get(key, set()) <= {call}:
            raise InputError(
                f"a parameter of {self._owners[key][0].label} is given to {name_of(func)}, and is used outside of this call of its module "
                "too, so torch.func cannot run the module for it; register a rule for the parts (fastqat.norms.register_rule)"
            )
        self._by_func.add(key)

    def _refuse(self, func: Any, key: int, args: Any, kwargs: Any) -> NoReturn:
        raise not_followed(func, self._owners[key][0].label, args, kwargs, self._pass.samples, self.constants)

    def _refuse_outside(self, func: Any, key: int) -> NoReturn:
        target = self._owners[key][0]
        raise InputError(
            f"a parameter of {target.label} is given to {name_of(func)} outside of that layer's forward, and a quantized layer only "
            "measures itself. Call the layer instead, leave it float, or move the operation out of the block"
        )


def _as_differentiated(x: Tensor, grads: Tensor) -> Tensor:
    """x in the dtype that the layer computed in, as under autocast; ids stay ids."""
    return x.to(grads.dtype) if x.is_floating_point() else x
