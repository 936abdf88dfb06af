"""Modules without a rule: torch.func runs the module again for each sample, ``vmap(vjp)``, with the gradients of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.utils import parametrize
from torch.utils import _pytree

from .._errors import InputError
from .calls import Call
from .rules.registry import sq_norm_of
from .targets import NO_RULE

if TYPE_CHECKING:
    from .engine import Pass

Forward = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
Pulled = tuple[tuple[Tensor, ...], dict[str, Tensor]]
_PLAIN = (Tensor, bool, int, float, str, type(None))


class Run(NamedTuple):
    """A call that is run again for each sample.

    inputs, outputs: the dimension of the samples in each tensor; None where a tensor is the same for all samples.
    sizes: norms ``[N]`` of the outputs, by which the second run is checked; tolerance: of their differences, relative.
    """

    call: Call
    names: frozenset[str]
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    sizes: tuple[Tensor, ...]
    tolerance: float

    @property
    def module(self) -> nn.Module:
        return self.call.target.module


def after(measured: Pass, call: Call, y: Any) -> Any:
    """Watch the outputs of a module that torch.func is left with."""
    target = call.target
    names = frozenset(target.names if target.how == "func" else measured.reads.left_to_func(call))
    if not names:
        return None
    leaves, spec = _pytree.tree_flatten(y)
    outputs = _floating(leaves)
    _check_call(call, leaves, outputs)
    run = _run_of(measured, call, names, outputs)
    if measured.calls[target.module] > 1:
        measured.collector.several.update(id(target.parameters[name]) for name in names)
    inputs, receive = call.tensors, partial(_measure, measured, run._replace(call=call.without_tensors()))
    if len(leaves) == 1 and y is leaves[0]:
        return measured.taps.watch(y, inputs, receive, target.label)
    watched = iter(measured.taps.watch_all(outputs, inputs, receive, target.label))
    return _pytree.tree_unflatten([next(watched) if _is_floating(leaf) else leaf for leaf in leaves], spec)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _floating(leaves: list[Any]) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in leaves if _is_floating(leaf))


def _check_call(call: Call, leaves: list[Any], outputs: tuple[Tensor, ...]) -> None:
    label, module = call.target.label, call.target.module
    hidden = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _PLAIN)]
    if hidden or not outputs or not call.tensors:
        raise InputError(
            f"{label} takes {len(call.tensors)} tensors and makes {', '.join(hidden) or f'{len(outputs)} of floating point'}; torch.func "
            "can measure it only where tensors are taken and tensors, or tuples and dicts of them, are made. Register a rule for a part of "
            "it (fastqat.norms.register_rule)"
        )
    if call.versions_now() != call.versions:
        raise InputError(f"{label} changes its input in place, so it cannot be run again for each sample; make a copy in it")
    if parametrize._cache_enabled and any(parametrize.is_parametrized(part) for part in module.modules()):
        raise InputError(f"{label} is parametrized and called under parametrize.cached(), which hides its parameters; call it outside")
    if isinstance(module, nn.RNNBase) and module.training and module.dropout and module.num_layers > 1:
        raise InputError(f"{label} draws a dropout mask, which would be drawn anew; use dropout=0, or dropout layers between RNNs")


def _run_of(measured: Pass, call: Call, names: frozenset[str], outputs: tuple[Tensor, ...]) -> Run:
    """Which dimensions hold the samples; checks that they do."""
    target, module, inputs = call.target, call.target.module, call.tensors
    dims_in: tuple[int | None, ...]
    if isinstance(module, nn.RNNBase):
        first = 0 if module.batch_first else 1
        if any(x.dim() != 3 for x in inputs):
            raise InputError(
                f"{target.label} was given {' and '.join(str(list(x.shape)) for x in inputs)}; accepted: a batch of sequences, three "
                "dimensions, not packed"
            )
        dims_in, dims_out = (first, *[1] * (len(inputs) - 1)), (first, *[1] * (len(outputs) - 1))
        measured.check_batch(inputs[0], target, "input", first)
    else:
        if getattr(module, "batch_first", True) is False:
            raise InputError(f"{target.label} has batch_first=False; build it with batch_first=True")
        measured.check_batch(inputs[0], target, "input")
        dims_in = tuple(0 if x.dim() and x.shape[0] == measured.samples else None for x in inputs)
        dims_out = (0,) * len(outputs)
        for y in outputs:
            measured.check_batch(y, target, "output")
    sizes = tuple(_size(y.detach().movedim(dim, 0)) for y, dim in zip(outputs, dims_out, strict=True))
    return Run(call, names, dims_in, dims_out, sizes, _tolerance(outputs))


def _tolerance(outputs: tuple[Tensor, ...]) -> float:
    """That of half of the digits; in an autocast region of those that it leaves, for the second run has none."""
    device = outputs[0].device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtypes = [*(y.dtype for y in outputs), *([torch.get_autocast_dtype(device)] if autocast else [])]
    return 4 * max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5


def _size(y: Tensor) -> Tensor:
    """``[N, ...]`` → ``[N]``, in fp32 or fp64."""
    return torch.linalg.vector_norm(y.unsqueeze(-1).flatten(1), dim=1, dtype=torch.promote_types(y.dtype, torch.float32))


def _measure(measured: Pass, run: Run, inputs: tuple[Tensor, ...], *grads: Tensor | None) -> None:
    target = run.call.target
    measured.arrived(next(grad for grad in grads if grad is not None))
    measured.muted = True
    try:
        with _left_alone(run.module):
            found = sample_grads(run, inputs, grads)
    except RuntimeError as error:
        raise InputError(f"torch.func cannot run {target.label} for each sample: {error}. {NO_RULE.split(',')[0].capitalize()}") from error
    finally:
        measured.muted = False
    for name, grad in found.items():
        parameter, grad = target.parameters[name], grad.to(torch.promote_types(grad.dtype, torch.float32))
        if measured.collector.is_kept(parameter):
            measured.collector.add_grads(parameter, grad)
        else:
            measured.collector.add_sq_norm(target.name, sq_norm_of(grad))


def sample_grads(run: Run, inputs: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    """``[N, *shape]`` by name: gradients of the module's parameters from what it was given and the gradients of its outputs.

    Each sample is run as a batch of one, and its outputs must be those that it had in the batch. Random operations inside are refused by
    torch: they would be drawn anew.

    Raises:
        InputError: the outputs differ, or the module changes its buffers.
    """
    parameters = {name: run.call.target.parameters[name].detach() for name in run.names}
    buffers = {name: buffer.clone() for name, buffer in run.module.named_buffers()}
    reached = [i for i, grad in enumerate(grads) if grad is not None]
    given = tuple(grad for grad in grads if grad is not None)
    dims = (*run.inputs, *(run.outputs[i] for i in reached))
    in_turn = isinstance(run.module, nn.RNNBase)

    def one(*tensors: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """From one sample's inputs and gradients, each as a batch of one."""

        def forward(values: dict[str, Tensor]) -> tuple[Tensor, ...]:
            y = functional_call(run.module, {**values, **buffers}, *run.call.arguments(tensors[: len(inputs)]))
            outputs = _floating(_pytree.tree_leaves(y))
            return tuple(outputs[i] for i in reached)

        ys, found = (_by_autograd if in_turn else _by_func)(forward, parameters, tensors[len(inputs) :])
        return found, tuple(_size(y.movedim(run.outputs[i], 0))[0] for i, y in zip(reached, ys, strict=True))

    found, sizes = (_in_turn if in_turn else _at_once)(one, (*inputs, *given), dims)
    changed = [name for name, buffer in buffers.items() if buffer._version]
    if changed:
        names = ", ".join(changed)
        raise InputError(f"{run.call.target.label} changes {names} in its forward, so it cannot be run again; call eval() on it")
    _check_sizes(run, reached, sizes)
    return found


def _by_func(forward: Forward, parameters: dict[str, Tensor], grads: tuple[Tensor, ...]) -> Pulled:
    """What `forward` makes of the parameters, and their gradients from those of that."""
    ys, pull_back = vjp(forward, parameters)[:2]
    return ys, pull_back(tuple(grad.to(y.dtype) for y, grad in zip(ys, grads, strict=True)))[0]


def _by_autograd(forward: Forward, parameters: dict[str, Tensor], grads: tuple[Tensor, ...]) -> Pulled:
    """The same for operations that torch.func cannot differentiate, as those of RNNs."""
    with torch.enable_grad():
        values = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
        ys = forward(values)
    wide = [grad.to(y.dtype) for y, grad in zip(ys, grads, strict=True)]
    found = torch.autograd.grad(ys, list(values.values()), wide, allow_unused=True, materialize_grads=True)
    return tuple(y.detach() for y in ys), dict(zip(values, found, strict=True))


def _at_once(one: Callable[..., Any], tensors: tuple[Tensor, ...], dims: tuple[int | None, ...]) -> Any:
    def single(*parts: Tensor) -> Any:
        return one(*(x if dim is None else x.unsqueeze(dim) for x, dim in zip(parts, dims, strict=True)))

    return vmap(single, in_dims=dims, randomness="error")(*tensors)


def _in_turn(one: Callable[..., Any], tensors: tuple[Tensor, ...], dims: tuple[int | None, ...]) -> Any:
    """A loop over the samples, for modules that draw no random numbers."""
    samples = next(x.shape[dim] for x, dim in zip(tensors, dims, strict=True) if dim is not None)
    results = [one(*(x if dim is None else x.narrow(dim, i, 1) for x, dim in zip(tensors, dims, strict=True))) for i in range(samples)]
    return _pytree.tree_map(lambda *parts: torch.stack(parts), *results)


def _check_sizes(run: Run, reached: list[int], sizes: tuple[Tensor, ...]) -> None:
    for i, alone in zip(reached, sizes, strict=True):
        together = run.sizes[i]
        if together.numel() and bool(((alone - together).abs() > run.tolerance * (together + together.max())).any()):
            raise InputError(
                f"{run.call.target.label} makes something else of a sample alone than in the batch: it mixes the samples, was given a "
                "tensor without samples that has as many rows as there are, or reads what has changed since. Register a rule for it, or "
                "for a part of it (fastqat.norms.register_rule), or pass another number of samples"
            )


@contextmanager
def _left_alone(module: nn.Module) -> Iterator[None]:
    """Attributes that a run sets, as torch's older weight_norm and the list of an RNN's weights, are afterwards as they were."""
    kept = [(part, {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}) for part in module.modules()]
    lists = [(part, list(part._flat_weights)) for part in module.modules() if isinstance(part, nn.RNNBase)]
    try:
        yield
    finally:
        for part, tensors in kept:
            vars(part).update(tensors)
        for rnn, weights in lists:
            vars(rnn)["_flat_weights"] = weights
