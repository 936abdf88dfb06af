"""Modules without a rule: torch.func runs the module again for each sample, ``vmap(vjp)``, with the gradient of its output."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.func import functional_call, vjp, vmap

from .._errors import InputError
from .calls import Call
from .rules.registry import sq_norm_of
from .targets import NO_RULE

if TYPE_CHECKING:
    from .engine import Pass


def after(measured: Pass, call: Call, y: Any) -> Tensor | None:
    """Watch the output of a module that torch.func is left with."""
    target = call.target
    names = frozenset(target.names if target.how == "func" else measured.reads.left_to_func(call))
    if not names:
        return None
    if not isinstance(y, Tensor) or not call.tensors:
        raise InputError(
            f"{target.label} takes {len(call.tensors)} tensors and makes a {type(y).__name__}; torch.func can measure "
            f"{', '.join(sorted(names))} only where tensors are taken and one is made. Register a rule for a part of it "
            "(fastqat.norms.register_rule)"
        )
    if call.versions_now() != call.versions:
        raise InputError(f"{target.label} changes its input in place, so it cannot be run again for each sample; make a copy in it")
    measured.check_batch(call.tensors[0], target, "input")
    measured.check_batch(y, target, "output")
    if measured.calls[target.module] > 1:
        measured.collector.several.update(id(target.parameters[name]) for name in names)
    inputs = call.tensors
    return measured.taps.watch(y, inputs, partial(_measure, measured, call.without_tensors(), names), target.label)


def _measure(measured: Pass, call: Call, names: frozenset[str], inputs: tuple[Tensor, ...], grad_y: Tensor) -> None:
    target = call.target
    measured.arrived(grad_y)
    measured.muted = True
    try:
        grads = sample_grads(call, names, inputs, grad_y)
    except RuntimeError as error:
        raise InputError(f"torch.func cannot run {target.label} for each sample: {error}. {NO_RULE.split(',')[0].capitalize()}") from error
    finally:
        measured.muted = False
    for name, grad in grads.items():
        parameter = target.parameters[name]
        if measured.collector.is_kept(parameter):
            measured.collector.add_grads(parameter, grad)
        else:
            measured.collector.add_sq_norm(target.name, sq_norm_of(grad))


def sample_grads(call: Call, names: frozenset[str], inputs: tuple[Tensor, ...], grad_y: Tensor) -> dict[str, Tensor]:
    """``[N, *shape]`` by name: gradients of the module's parameters from what it was given and the gradient of its output.

    Each sample is run as a batch of one. Random operations inside are refused by torch: they would be drawn anew.
    """
    module, samples = call.target.module, grad_y.shape[0]
    parameters = {name: call.target.parameters[name].detach() for name in names}
    dims = tuple(0 if x.dim() and x.shape[0] == samples else None for x in inputs)

    def one(grad: Tensor, *tensors: Tensor) -> dict[str, Tensor]:
        batch = tuple(x if dim is None else x.unsqueeze(0) for x, dim in zip(tensors, dims, strict=True))

        def run(values: dict[str, Tensor]) -> Tensor:
            return functional_call(module, values, *call.arguments(batch))

        y, pull_back = vjp(run, parameters)[:2]
        return pull_back(grad.unsqueeze(0).to(y.dtype))[0]

    return vmap(one, in_dims=(0, *dims), randomness="error")(grad_y, *inputs)
