"""QuantSpec: everything that describes one quantizer, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .._errors import InputError

GRAD_FACTORS = ("paper", "per_scale", "range", "none")
SEMANTICS = ("div", "reciprocal")


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized; frozen, so that it can be shared between layers.

    Args:
        bits: width of the integer codes, 2 to 16 signed or 1 to 16 unsigned.
        quantizer: a name of `list_quantizers()`: ``"lsq"`` learns the scale, ``"lsq_plus"`` the zero point too, ``"pact"`` a clipping
            value; ``"dorefa"`` puts normalised weights on a fixed grid; ``"minmax"`` observes the range.
        granularity: ``"tensor"``: one scale; ``"channel"``: one per output channel of a weight, per channel of an activation;
            ``("group", n)``: weights only, one for every n neighbours along the input dimension, which n divides.
        signed: True, False, or ``"auto"``: decided where the range is initialised (no negative value seen: unsigned), then kept.
        symmetric: False gives an integer zero point, for quantizers that have one (``"minmax"``, ``"lsq_plus"``).
        grad_factor: multiplies the gradient of a learned range. N weights of the layer, or features per sample:
            ``"paper"`` what the quantizer's paper has: 1/√(N·qmax) for LSQ and LSQ+, 1 for PACT; ``"range"`` 1/√(N·(qmax−qmin));
            ``"per_scale"`` 1/√(N·qmax) with N all elements that share one scale, batch included; ``"none"`` 1.
        init: how the first range is found, a name that the quantizer knows; None is its default. ``"lsq"`` s = 2·mean|x|/√qmax, symmetric;
            ``"minmax"`` covers all values; ``"mse"`` searches the clipping of least squared error; ``"sigma"`` covers μ ± 3σ.
        semantics: ``"div"`` (codes of x/s, as ONNX) or ``"reciprocal"`` (codes of x·(1/s), as torch).

    Raises:
        InputError (a ValueError): a field is outside what is accepted.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020, section 2.2 for ``grad_factor="paper"``.

    Example:
        >>> import fastqat as fq
        >>> fq.QuantSpec(4).qrange()
        (-8, 7)
        >>> fq.QuantSpec(4, signed=False).qrange()
        (0, 15)
        >>> fq.QuantSpec(4, granularity=("group", 64)).per
        'group of 64'
    """

    bits: int
    quantizer: str = "lsq"
    granularity: str | tuple[str, int] = "tensor"
    signed: bool | Literal["auto"] = True
    symmetric: bool = True
    grad_factor: str = "paper"
    init: str | None = None
    semantics: str = "div"

    def __post_init__(self) -> None:
        if self.signed not in (True, False, "auto"):
            raise InputError(f"signed is {self.signed!r}; accepted: True, False or 'auto'")
        self._check_bits()
        self._check_granularity()
        _check_name("grad_factor", self.grad_factor, GRAD_FACTORS)
        _check_name("semantics", self.semantics, SEMANTICS)
        if not isinstance(self.symmetric, bool):
            raise InputError(f"symmetric is {self.symmetric!r}; accepted: True or False")
        self._check_quantizer()

    def _check_bits(self) -> None:
        least = 1 if self.signed is False else 2
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not least <= self.bits <= 16:
            raise InputError(
                f"bits is {self.bits!r} with signed={self.signed!r}; accepted: whole numbers 2 to 16 for signed (or 'auto') codes, "
                "1 to 16 with signed=False"
            )

    def _check_granularity(self) -> None:
        granularity = self.granularity
        if isinstance(granularity, list):
            object.__setattr__(self, "granularity", granularity := tuple(granularity))
        if granularity in ("tensor", "channel"):
            return
        kind, size = granularity if isinstance(granularity, tuple) and len(granularity) == 2 else (None, None)
        if kind != "group" or isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(
                f"granularity is {granularity!r}; accepted: 'tensor', 'channel', or ('group', n) with n >= 1, as ('group', 64)"
            )

    def _check_quantizer(self) -> None:
        from .ranges import SYMMETRIC_INITS
        from .registry import quantizer_class

        cls = quantizer_class(self.quantizer)
        if self.per.partition(" ")[0] not in cls.granularities:
            accepted = ", ".join(map(repr, cls.granularities))
            raise InputError(f"granularity {self.granularity!r} with quantizer {self.quantizer!r}; accepted: {accepted}")
        if not self.symmetric and not cls.has_zero_point:
            raise InputError(f"quantizer {self.quantizer!r} has no zero point; use symmetric=True, or quantizer='lsq_plus' or 'minmax'")
        if self.init is not None:
            _check_name(f"init of quantizer {self.quantizer!r}", self.init, cls.inits)
        if not self.symmetric and self.init in SYMMETRIC_INITS:
            raise InputError(f"init {self.init!r} finds no zero point; use symmetric=True or another init")

    @property
    def group_size(self) -> int | None:
        """n of ``("group", n)``, else None."""
        return self.granularity[1] if isinstance(self.granularity, tuple) else None

    @property
    def per(self) -> str:
        """The granularity in words: what shares a scale."""
        return self.granularity if isinstance(self.granularity, str) else f"group of {self.group_size}"

    def qrange(self, signed: bool | None = None) -> tuple[int, int]:
        """The integer range ``(qmin, qmax)``; `signed` stands in where the spec says ``"auto"``.

        Raises:
            InputError (a ValueError): the spec says ``"auto"`` and `signed` is not given.
        """
        decided = self.signed if self.signed != "auto" else signed
        if decided is None:
            raise InputError("signed='auto' is decided at calibration; pass qrange(signed=True) or qrange(signed=False)")
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if decided else (0, (1 << self.bits) - 1)


def _check_name(what: str, got: object, accepted: tuple[str, ...]) -> None:
    if got not in accepted:
        raise InputError(f"{what} is {got!r}; accepted: {', '.join(map(repr, accepted))}")
