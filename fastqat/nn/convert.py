"""quantize(): swap a model's layers for quantized ones."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from .._errors import InputError
from ..quantizers import Quantizer
from .config import QConfig
from .conv import QuantConv1d, QuantConv2d, QuantConv3d
from .layer import Quantizers, QuantLayer
from .linear import QuantLinear

LAYERS: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.Linear: QuantLinear,
}

REASON = "_fastqat_left_alone"
"""Attribute of a layer that `quantize` left alone: why."""

Filter = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class _Decision:
    """What happens to one layer: its configuration, or the reason why it stays float."""

    name: str
    layer: nn.Module
    config: QConfig | None
    reason: str = ""
    able: bool = True


def quantize(
    model: nn.Module,
    config: str | QConfig,
    *,
    skip: Iterable[str] = ("first", "last"),
    filter_fn: Filter | None = None,
    inplace: bool = False,
) -> nn.Module:
    """A copy of `model` whose linear and convolution layers quantize their weight and their input.

    Exact types are swapped (Conv1d, Conv2d, Conv3d, Linear); subclasses and layers whose weight is computed by a parametrization or a
    hook are left alone, with one warning. Weight scales are set at once from the weights; activations need `fastqat.calibrate` before
    the first forward pass. `fastqat.summary` tells what happened to every layer.

    Args:
        model: any module; its parameters are kept as they are.
        config: ``"w4a4"``, ``"w2a32"`` (float activations), ``"w4a4:channel"`` or ``"w4a4:group64"`` (a scale per output channel, or
            per 64 inputs of each), or a QConfig.
        skip: ``"first"`` and/or ``"last"``: the first and last quantizable layer in the order of ``model.named_modules()``.
        filter_fn: ``(name, layer) -> bool``; False leaves the layer float.
        inplace: change `model` itself; a layer that is used in several places stays one layer.

    Returns:
        The quantized model, in the mode (train or eval) that it was in.

    Raises:
        InputError (a ValueError): no layer can be quantized; an override matches no layer; a weight is empty, NaN or infinite, or its
            inputs cannot be cut into groups (the message names the layer); the model cannot be copied; or an argument has another
            form. The model is then unchanged.

    Example:
        >>> import torch, fastqat as fq
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> quantized = fq.quantize(net, "w4a32")
        >>> [type(layer).__name__ for layer in quantized]
        ['Linear', 'ReLU', 'QuantLinear', 'ReLU', 'Linear']
    """
    config = QConfig.parse(config) if isinstance(config, str) else config
    if not isinstance(config, QConfig):
        raise InputError(f"config is {config!r}; accepted: a string such as 'w4a4' or 'w2a32', or a QConfig")
    skip = _checked_skip(skip)
    model = model if inplace else _copy(model)
    decisions = _decide(model, config, skip, filter_fn)
    plan = [_build(d.name, d.layer, d.config) for d in decisions if d.config is not None]
    if not plan:
        raise InputError(_nothing_to_do(decisions))
    for layer, cls, quantizers in plan:
        cls.adopt(layer, quantizers)
    for decision in decisions:
        setattr(decision.layer, REASON, decision.reason)
    _warn([decision.name for decision in decisions if not decision.able])
    name_quantizers(model)
    _leave_fast_path(model)
    return model


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise InputError(f"the model cannot be copied ({error}); pass inplace=True to change it itself") from error


def _build(name: str, layer: nn.Module, config: QConfig) -> tuple[nn.Module, type[QuantLayer], Quantizers]:
    """The layer, its new class, and the quantizers made for it; the layer is not changed yet."""
    cls = LAYERS[type(layer)]
    return layer, cls, cls.build_quantizers(layer, config.weight, config.activation, name)


def name_quantizers(model: nn.Module) -> None:
    """Tell every quantizer that has no name yet the name of its layer, for messages."""
    for name, module in model.named_modules():
        for child in module.children():
            if isinstance(child, Quantizer):
                child.layer = child.layer or name


def cannot_swap(layer: nn.Module) -> str | None:
    """Why a linear or convolution layer cannot be swapped; None when it can."""
    if parametrize.is_parametrized(layer):
        return "its parameters are parametrized (torch.nn.utils.parametrize); remove the parametrization first"
    if type(layer) not in LAYERS:
        base = next(cls for cls in LAYERS if isinstance(layer, cls))
        return f"{type(layer).__name__} is a subclass of {base.__name__}; only the exact type is swapped"
    if "weight" not in layer._parameters:
        return "its weight is computed by a hook (weight_norm, spectral_norm or pruning); remove the hook first"
    if "forward" in vars(layer):
        return "its forward was replaced on the instance, which would bypass the quantizers; restore it first"
    return None


def _checked_skip(skip: Iterable[str]) -> set[str]:
    names = {skip} if isinstance(skip, str) else set(skip)
    if not names <= {"first", "last"}:
        raise InputError(
            f"skip is {tuple(skip)!r}; accepted: 'first', 'last', both or (); other layers stay float with overrides={{name: None}}"
        )
    return names


def _linear_and_conv(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers of the types in LAYERS and their subclasses that are not quantized yet, in module order."""
    kinds = tuple(LAYERS)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds) and not isinstance(module, QuantLayer)]


def _decide(model: nn.Module, config: QConfig, skip: set[str], filter_fn: Filter | None) -> list[_Decision]:
    """One decision per linear or convolution layer, in module order."""
    layers = _linear_and_conv(model)
    able = [layer for _, layer in layers if cannot_swap(layer) is None]
    edges = {id(able[end]): edge for edge, end in (("last", -1), ("first", 0)) if able and edge in skip}
    unused = [pattern for pattern in config.overrides if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in layers)]
    if layers and unused:
        names = ", ".join(name for name, _ in layers)
        raise InputError(f"override {unused[0]!r} matches no linear or convolution layer; the layers are: {names}")
    return [_decide_one(name, layer, config, edges.get(id(layer)), filter_fn) for name, layer in layers]


def _decide_one(name: str, layer: nn.Module, config: QConfig, edge: str | None, filter_fn: Filter | None) -> _Decision:
    unable = cannot_swap(layer)
    if unable is not None:
        return _Decision(name, layer, None, unable, able=False)
    pattern = next((p for p in config.overrides if fnmatch.fnmatchcase(name, p)), None)
    if pattern is not None:
        override = config.overrides[pattern]
        return _Decision(name, layer, override, "" if override else f"override {pattern!r}")
    if edge is not None:
        return _Decision(name, layer, None, f"skip={edge!r}")
    if filter_fn is not None and not filter_fn(name, layer):
        return _Decision(name, layer, None, "filter_fn")
    return _Decision(name, layer, config)


def _nothing_to_do(decisions: list[_Decision]) -> str:
    if not decisions:
        kinds = ", ".join(cls.__name__ for cls in LAYERS)
        return f"the model has no layer that can be quantized; accepted: a model with {kinds} layers that are not quantized yet"
    reasons = "; ".join(f"{d.name or type(d.layer).__name__}: {d.reason}" for d in decisions[:3])
    return f"all {len(decisions)} linear and convolution layers are left alone ({reasons}); change skip, filter_fn or the overrides"


def _warn(unable: list[str]) -> None:
    """One warning for the layers that a user may expect to be quantized."""
    if unable:
        names = ", ".join(unable[:5]) + (", ..." if len(unable) > 5 else "")
        warnings.warn(f"{len(unable)} layers cannot be swapped and stay float: {names}; fastqat.summary(model) tells why", stacklevel=3)


def _leave_fast_path(model: nn.Module) -> None:
    """torch's fused encoder layer reads the weights of linear1 and linear2 and skips their forward in eval mode: switch it off."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(child, QuantLayer) for child in module.children()):
            module.activation_relu_or_gelu = 0
