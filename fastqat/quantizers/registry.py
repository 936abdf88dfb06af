"""The registry of quantizers: a new one is a class in its own file under `register_quantizer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from .._errors import InputError
from .layout import scale_layout, where

if TYPE_CHECKING:
    from .base import Quantizer
    from .spec import QuantSpec

    QuantizerType = TypeVar("QuantizerType", bound=type[Quantizer])

_QUANTIZERS: dict[str, type[Quantizer]] = {}


def register_quantizer(name: str) -> Callable[[QuantizerType], QuantizerType]:
    """Class decorator: enter a `Quantizer` under `name`, the value of ``QuantSpec.quantizer``.

    Raises:
        InputError (a ValueError): the name is taken.
    """

    def enter(cls: QuantizerType) -> QuantizerType:
        if name in _QUANTIZERS and _QUANTIZERS[name].__qualname__ != cls.__qualname__:
            raise InputError(f"quantizer {name!r} is already registered as {_QUANTIZERS[name].__qualname__}; choose another name")
        _QUANTIZERS[name] = cls
        return cls

    return enter


def list_quantizers() -> dict[str, str]:
    """Registered names, each with its one-sentence description.

    Example:
        >>> from fastqat.quantizers import list_quantizers
        >>> list_quantizers()["lsq"]
        'Learned step size: the scale is a parameter with its own gradient, symmetric codes.'
    """
    return {name: (cls.__doc__ or "").partition("\n")[0] for name, cls in _QUANTIZERS.items()}


def quantizer_class(name: str) -> type[Quantizer]:
    """The class registered under `name`.

    Raises:
        InputError (a ValueError): nothing is registered under `name`.
    """
    if name not in _QUANTIZERS:
        raise InputError(f"quantizer is {name!r}; registered: {', '.join(map(repr, _QUANTIZERS))}")
    return _QUANTIZERS[name]


def make_quantizer(
    spec: QuantSpec,
    role: str = "activation",
    *,
    channels: int | None = None,
    axis: int | None = None,
    shape: Sequence[int] | None = None,
    layer: str = "",
) -> Quantizer:
    """The quantizer that `spec` describes, for a ``"weight"`` or an ``"activation"``.

    Args:
        spec: how to quantize.
        role: what the tensor is.
        channels, axis: size and position of the channels, for per-channel specs.
        shape: of a weight; says everything that per-channel (axis 0) and per-group specs need.
        layer: name of the layer, for messages.

    Raises:
        InputError (a ValueError): sizes that the spec needs are missing, groups of an activation or that do not divide the weight's
            inputs, or an unknown role.

    Example:
        >>> from fastqat.quantizers import QuantSpec, make_quantizer
        >>> make_quantizer(QuantSpec(4)).calibrated
        False
        >>> make_quantizer(QuantSpec(4, granularity=("group", 8)), "weight", shape=(2, 16)).scale.shape
        torch.Size([2, 2])
    """
    cls = quantizer_class(spec.quantizer)
    layout = scale_layout(spec, role, channels=channels, axis=axis, shape=shape, where=where(layer))
    quantizer = cls(spec, role, layout)
    quantizer.layer = layer
    return quantizer
