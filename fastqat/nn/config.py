"""QConfig: which quantizers a model's layers get."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .._errors import InputError
from ..quantizers import QuantSpec

_SHORT = re.compile(r"w(?P<weight>\d+)a(?P<activation>\d+)(:(?P<granularity>tensor|channel|group(?P<size>\d+)))?", re.IGNORECASE)
_FLOAT_BITS = 32


@dataclass(frozen=True)
class QConfig:
    """Quantizers of a model's layers.

    Args:
        weight: spec of the weights; None leaves them float.
        activation: spec of the layers' inputs; None leaves them float.
        overrides: keyword only; layer name pattern (`fnmatch`) → QConfig, short string, or None to leave the layer float. The first
            pattern that matches decides, and wins over ``skip`` and ``filter_fn`` of `fastqat.quantize`.

    Raises:
        InputError (a ValueError): both specs are None, or a value has another type.
        TypeError: a third positional argument.

    Example:
        >>> import fastqat as fq
        >>> config = fq.QConfig(fq.QuantSpec(2), None, overrides={"layer4.*": "w4a32", "*.downsample.*": None})
        >>> config.overrides["layer4.*"].weight.bits
        4
    """

    weight: QuantSpec | None
    activation: QuantSpec | None = None
    overrides: Mapping[str, QConfig | None] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        for name, spec in (("weight", self.weight), ("activation", self.activation)):
            if spec is not None and not isinstance(spec, QuantSpec):
                raise InputError(f"QConfig.{name} is {spec!r}; accepted: a QuantSpec, or None for float")
        if self.weight is None and self.activation is None:
            raise InputError("QConfig with weight=None and activation=None quantizes nothing; give at least one QuantSpec")
        if not isinstance(self.overrides, Mapping):
            raise InputError(f"QConfig.overrides is {self.overrides!r}; accepted: a mapping such as {{'layer4.*': 'w8a8', 'fc': None}}")
        object.__setattr__(self, "overrides", {pattern: _override(pattern, value) for pattern, value in self.overrides.items()})

    @classmethod
    def parse(cls, text: str) -> QConfig:
        """The configuration that a short string names: ``w<bits>a<bits>``, 32 for float, then ``:channel`` or ``:group<n>`` for weights.

        Weights are signed, activations ``signed="auto"``; both LSQ, activations per tensor.

        Raises:
            InputError (a ValueError): the string has another form, or bits outside 2 to 16.

        Example:
            >>> import fastqat as fq
            >>> fq.QConfig.parse("w2a32").activation is None
            True
            >>> fq.QConfig.parse("w4a8:channel").weight.granularity
            'channel'
            >>> fq.QConfig.parse("w4a32:group64").weight.granularity
            ('group', 64)
        """
        match = _SHORT.fullmatch(text.strip())
        if match is None:
            raise InputError(f"quantization {text!r}; accepted: 'w4a4', 'w2a32' (32: float), 'w4a4:channel', 'w4a4:group64', or a QConfig")
        weight_bits, activation_bits = int(match["weight"]), int(match["activation"])
        size = match["size"]
        granularity = (match["granularity"] or "tensor").lower() if size is None else ("group", int(size))
        weight = None if weight_bits == _FLOAT_BITS else QuantSpec(weight_bits, granularity=granularity)
        activation = None if activation_bits == _FLOAT_BITS else QuantSpec(activation_bits, signed="auto")
        return cls(weight, activation)


def _override(pattern: str, value: QConfig | str | None) -> QConfig | None:
    config = QConfig.parse(value) if isinstance(value, str) else value
    if config is not None and not isinstance(config, QConfig):
        raise InputError(f"override {pattern!r} is {value!r}; accepted: a QConfig, a string such as 'w8a8', or None")
    if config is not None and config.overrides:
        raise InputError(f"override {pattern!r} has overrides of its own; list every pattern in the outer QConfig")
    return config
