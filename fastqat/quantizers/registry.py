"""The registry of quantizers: a new one is a class in its own file under `register_quantizer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from .._errors import InputError

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


def make_quantizer(spec: QuantSpec, role: str = "activation", *, channels: int | None = None, axis: int | None = None) -> Quantizer:
    """The quantizer that `spec` describes, for a ``"weight"`` or an ``"activation"``; `channels` and `axis` serve per-channel specs.

    Raises:
        InputError (a ValueError): a per-channel spec without `channels` and `axis`, or an unknown role.

    Example:
        >>> from fastqat.quantizers import QuantSpec, make_quantizer
        >>> make_quantizer(QuantSpec(4)).calibrated
        False
    """
    return quantizer_class(spec.quantizer)(spec, role, channels=channels, axis=axis)
