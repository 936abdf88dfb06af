"""One measured pass: its hooks, installed at entry and gone at exit, and what they share."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from .._errors import InputError
from . import attention, direct, fallback, layers
from .calls import Call, in_backward
from .collector import Collector
from .result import GradNorms
from .taps import Taps
from .targets import Target, check_statistics, find_targets

_measured: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # modules that a block is open for
_AFTER = {
    "rule": layers.after_rule,
    "quantized": layers.after_quantized,
    "attention": attention.after,
    "direct": fallback.after,
    "func": fallback.after,
}


class Pass:
    """One forward and backward pass of `model` under watch.

    Attributes:
        samples: N, known from the first forward on.
        calls: how often each watched module was called, outside the backward pass.
        open_calls: those that are running, the innermost last.
        reads: sees parameters being read; `collector`: takes what is delivered; `taps`: the watched outputs.
        muted: True while torch.func runs a module again.
    """

    def __init__(self, model: nn.Module, mean: bool, per_layer: bool, scale_grads: bool, func: bool):
        self.found = find_targets(model, func)
        if not _measured.isdisjoint(model.modules()):
            raise InputError(
                "the model, or a part of it, is measured by a per_sample_grad_norms block that is still open; accepted: one block at a time"
            )
        self.model, self.mean, self.per_layer, self.scale_grads, self.func = model, mean, per_layer, scale_grads, func
        self.norms = GradNorms()
        self.collector = Collector(self.found, scale_grads)
        self.taps = Taps()
        self.reads = direct.Reads(self)
        self.samples: int | None = None
        self.calls: Counter[nn.Module] = Counter()
        self.open_calls: list[Call] = []
        self.muted = False
        self._forwards = 0
        self._inputs: set[int] = set()
        self._device: torch.device | None = None
        self._undo: list[Callable[[], Any]] = []

    def open(self) -> None:
        """Install everything; on an error nothing stays."""
        try:
            modules = list(self.model.modules())
            _measured.update(modules)
            self.at_exit(partial(_measured.difference_update, modules))
            self._hook(self.model.register_forward_pre_hook(_Hook(self._begin), with_kwargs=True))
            for name, module in self.model.named_modules():
                if isinstance(module, _BatchNorm):  # it may be set to train mode inside the block
                    self._hook(module.register_forward_pre_hook(_Hook(partial(_check_mode, name))))
            for target in self.found.targets:
                self._watch(target)
            attention.switch_nested_off(self)
            self.reads.__enter__()
            self.at_exit(partial(self.reads.__exit__, None, None, None))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take everything off, the last first."""
        while self._undo:
            self._undo.pop()()
        self.taps.remove()
        self.reads.forget()

    def at_exit(self, undo: Callable[[], Any]) -> None:
        """Have `undo` called when the block ends, however it ends."""
        self._undo.append(undo)

    def finish(self) -> None:
        """Fill the result from what was collected."""
        if self._device is None or self.samples is None:
            raise InputError(
                "no gradient reached a layer of the model; accepted: one forward and one backward pass inside the block, with gradients "
                "enabled, as in `with fq.per_sample_grad_norms(model) as norms: loss_of(model(x)).backward()`"
            )
        self.reads.check_seen()
        with torch._C.DisableTorchFunction():  # the mode need not see what happens here
            self._fill(self.samples, self._device)

    def _fill(self, samples: int, device: torch.device) -> None:
        factor = samples if self.mean else 1
        squares = self.collector.sq_norms(samples, device)
        total = torch.stack(list(squares.values())).sum(0) * factor**2
        self.norms.fill(
            sq_total=total,
            total=total.sqrt(),
            layers={name: sq_norm.sqrt() * factor for name, sq_norm in squares.items()} if self.per_layer else None,
            scale_grads=self.collector.scale_grads(samples, device) * factor if self.scale_grads else None,
            scale_names=self.collector.scale_names() if self.scale_grads else None,
        )

    def check_batch(self, tensor: Tensor, target: Target, what: str, dim: int = 0) -> None:
        """Dimension `dim` must count the samples of the pass."""
        size = tensor.shape[dim] if tensor.dim() > dim else None
        if self.samples is None:
            self.samples = size
        if size is None or size != self.samples:
            raise InputError(
                f"the {what} of {target.label} is {list(tensor.shape)}; accepted: the {self.samples} samples of the batch in dimension "
                f"{dim}. Put them there (batch_first=True, no windows or positions folded into the batch), or freeze this layer beside "
                "parameters that train"
            )
        if dim and tensor.shape[0] == size != 1:
            raise InputError(
                f"{target.label} has batch_first=False and was given as many positions as samples, {size}: the layers around it cannot be "
                "checked. Build it with batch_first=True, or pass another number of samples"
            )

    def is_input(self, tensor: Tensor) -> bool:
        """Whether it is, or is a part of, what the model was given."""
        return tensor.untyped_storage().data_ptr() in self._inputs

    def differentiates(self) -> bool:
        """Whether fastqat itself may be differentiating: the quantizers of a layer, or in the backward pass those of a rule."""
        return in_backward() or (bool(self.open_calls) and self.open_calls[-1].target.how in ("quantized", "rule"))

    def arrived(self, grad: Tensor) -> None:
        """A gradient has come to a watched layer."""
        self._device = self._device or grad.device

    def _hook(self, handle: RemovableHandle) -> None:
        self.at_exit(handle.remove)

    def _begin(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Before the model's forward: N is dimension 0 of its first tensor."""
        if self.muted or in_backward():
            return
        self._forwards += 1
        if self._forwards > 1:
            raise InputError("a second forward pass of the model in one block; accepted: one. Use a new block for each pass")
        tensors = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
        if tensors:
            self.samples = tensors[0].shape[0]
        self._inputs = {x.untyped_storage().data_ptr() for x in tensors}

    def _count(self, target: Target) -> None:
        self.calls[target.module] += 1
        if self.calls[target.module] > 1:
            self.collector.several.update(target.keys)

    def _watch(self, target: Target) -> None:
        if target.how == "attention":
            attention.replace_forward(self, target)
        if target.how == "quantized":
            layers.watch_quantized(self, target)

        after_call = _AFTER[target.how]
        outermost = target.how in ("direct", "func")  # they see a call with the user's hooks, the others what the forward itself does

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            call = Call(target, args, kwargs)
            self.open_calls.append(call)
            if target.how == "direct" and in_backward():  # where torch has switched the mode off
                self.reads.__enter__()
                call.entered = True

        def after(module: nn.Module, args: Any, kwargs: Any, y: Any) -> Any:
            if self.muted:
                return None
            if torch.compiler.is_compiling():
                raise InputError("a pass under per_sample_grad_norms cannot be traced by torch.compile; run it without")
            with torch._C.DisableTorchFunction():  # the mode need not see what happens here
                call = self.open_calls[-1] if outermost else self._leave(target)
                assert call is not None
                if not in_backward():
                    self._count(target)
                return after_call(self, call, y) if torch.is_grad_enabled() else None

        def leave(module: nn.Module, args: Any, y: Any) -> None:
            self._leave(target)

        module = target.module
        self._hook(module.register_forward_pre_hook(_Hook(before), with_kwargs=True, prepend=outermost))
        self._hook(module.register_forward_hook(_Hook(after), with_kwargs=True, prepend=not outermost))
        self._hook(module.register_forward_hook(_Hook(leave), always_call=True))  # after an exception too

    def _leave(self, target: Target) -> Call | None:
        """Close the innermost call if it is one of `target`; a call that failed before it was opened is none."""
        if not self.open_calls or self.open_calls[-1].target is not target:
            return None
        call = self.open_calls.pop()
        if call.entered:
            self.reads.__exit__(None, None, None)
        return call


def _check_mode(name: str, module: nn.Module, args: Any) -> None:
    check_statistics(name, module)


class _Hook:
    """A hook of a pass, of which a copied or pickled module keeps nothing."""

    def __init__(self, run: Callable[..., Any]):
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _ignore


def _ignore(*args: Any) -> None:
    """What a copy of a hook does."""
