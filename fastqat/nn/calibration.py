"""calibrate(): find the activation ranges of a quantized model from a few batches."""

from __future__ import annotations

import contextlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import InputError
from .._modes import device_of, evaluation_mode
from ..quantizers import Quantizer
from ..quantizers.stats import RangeStats
from .convert import name_quantizers

Forward = Callable[[nn.Module, Any], object]


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, max_batches: int = 32, forward: Forward | None = None, force: bool = False
) -> nn.Module:
    """Observe the activations of `model` over some batches, and set the first scale and the sign of every activation quantizer.

    Runs in eval mode without gradients, weights quantized, observed activations in float; every mode is restored, whatever happens. With
    ``signed="auto"`` a range without a negative value becomes unsigned. What is calibrated already stays as it is, so that a second
    call does nothing. Calibrate before wrapping in DistributedDataParallel; every process must see the same batches.

    Args:
        model: the quantized model; changed in place.
        batches: iterable of tensors, of ``(x, ...)`` tuples or lists (x is used), or of anything with `forward`. Tensors are moved to
            the device of the model's first parameter or buffer.
        max_batches: how many are read at most.
        forward: ``(model, batch) -> anything`` runs one batch, for dicts and models with several inputs.
        force: observe every activation anew, calibrated or not.

    Returns:
        `model`.

    Raises:
        InputError (a ValueError): no batch, a batch that needs `forward`, or NaN or infinite activations (the message names the layer).
            No quantizer is then changed.

    Example:
        >>> import torch, fastqat as fq
        >>> nn = torch.nn
        >>> net = fq.quantize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "w4a4", skip=())
        >>> fq.calibrate(net, [torch.randn(16, 4), torch.randn(16, 4)])[2].activation_quantizer
        LSQ(activation, 4 bit unsigned, per tensor)
    """
    if max_batches < 1:
        raise InputError(f"max_batches is {max_batches}; accepted: 1 or more")
    if isinstance(batches, Tensor):
        raise InputError("batches is one tensor; accepted: an iterable of batches, as calibrate(model, [x])")
    name_quantizers(model)
    quantizers = [m for m in model.modules() if isinstance(m, Quantizer) and m.role == "activation" and (force or not m.calibrated)]
    if not quantizers:
        return model
    with _observing(model, quantizers):
        count = _run(model, itertools.islice(batches, max_batches), forward)
        seen = {quantizer: quantizer.stats for quantizer in quantizers if quantizer.stats is not None and quantizer.stats.count}
    if not count:
        raise InputError(
            "batches is empty; calibration needs one batch or more (a generator can be read once: pass a list or a DataLoader)"
        )
    _finish(quantizers, seen)
    return model


def _run(model: nn.Module, batches: Iterable[Any], forward: Forward | None) -> int:
    """Run every batch; return how many there were."""
    device, count = device_of(model), 0
    for batch in batches:
        if forward is not None:
            forward(model, _to_device(batch, device))
        else:
            model(_to_device(_input_of(batch), device))
        count += 1
    return count


def _input_of(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor):
        raise InputError(
            f"a calibration batch is {type(batch).__name__}; accepted: a tensor or a tuple (x, ...), or anything with "
            "forward=lambda model, batch: model(**batch)"
        )
    return x


def _to_device(value: Any, device: torch.device) -> Any:
    """Tensors, in tuples, lists and mappings too, on `device`; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to_device(item, device) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_to_device(item, device) for item in value)
    return value


@contextlib.contextmanager
def _observing(model: nn.Module, quantizers: list[Quantizer]) -> Iterator[None]:
    """Eval mode, no gradients, nothing compiled, the quantizers collecting; all of it as before afterwards."""
    try:
        for quantizer in quantizers:
            quantizer.stats = quantizer.new_stats()
        with evaluation_mode(model), _eager():
            yield
    finally:
        for quantizer in quantizers:
            quantizer.stats = None


def _eager() -> contextlib.AbstractContextManager[object]:
    """Compiled parts run eagerly; where dynamo was never imported (a second) nothing can be compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _finish(quantizers: list[Quantizer], seen: dict[Quantizer, RangeStats]) -> None:
    """Set the ranges of those that saw data, all or none; warn about the others."""
    for quantizer, stats in seen.items():
        quantizer.check(stats)
    for quantizer, stats in seen.items():
        quantizer.initialise(stats)
    unseen = [quantizer.layer for quantizer in quantizers if quantizer not in seen]
    if unseen:
        names = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        warnings.warn(f"{len(unseen)} layers did not run during calibration and stay uncalibrated: {names}", stacklevel=3)
