"""Quantizer: the state of one fake quantizer (scale, zero point, sign) and its life cycle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._errors import CalibrationError, InputError
from ..ops.fake_quant.api import fake_quantize
from ..ops.quant_layer.api import QuantArgs
from .factors import per_scale_share, scaled_gradient
from .layout import ScaleLayout, where
from .ranges import INITS, SAMPLING_INITS, CodeRange
from .spec import QuantSpec
from .stats import RangeStats


def _inside(zero_point: Tensor, qrange: tuple[int, int]) -> Tensor:
    return ((zero_point >= qrange[0]) & (zero_point <= qrange[1])).all()


class Quantizer(nn.Module):
    """Base of the quantizers: holds what one tensor needs and hands it to the ops as `QuantArgs`.

    A subclass sets `scale` (fp32, of the shape `size`) and `zero_point` (like scale, or None) in its ``__init__`` and writes
    `set_range` (first scale from statistics), where the range moves while training `current`, and where the values change on their way
    to the grid `transform`. The flags `calibrated` and `signed` are Python values (no host sync in the forward pass) and part of the
    state_dict.

    Attributes:
        spec: the QuantSpec.
        role: ``"weight"`` or ``"activation"``.
        layout: which elements share a scale; `size` is the shape of the scale.
        layer: name of the layer in the model, for messages; set by `fastqat.quantize` and `fastqat.calibrate`.
        calibrated: the range is known.
        signed: the codes have a sign; with ``signed="auto"`` decided when the range is initialised.
        stats: a `RangeStats` while the range is observed (`fastqat.calibrate`), else None.

    What a subclass says of itself:
        inits: the initialisations that it knows, its default first.
        granularities: those that it serves.
        has_zero_point: knows ``symmetric=False``.
        state_key: the entry of its state that no checkpoint of it lacks; positive and finite.
        paper_factor: the gradient factor that ``grad_factor="paper"`` stands for.
        decayed: names of the parameters that weight decay is meant for (`fastqat.param_groups`).
    """

    inits: ClassVar[tuple[str, ...]]
    granularities: ClassVar[tuple[str, ...]] = ("tensor", "channel", "group")
    has_zero_point: ClassVar[bool] = False
    state_key: ClassVar[str] = "scale"
    paper_factor: ClassVar[str] = "paper"
    decayed: ClassVar[tuple[str, ...]] = ()

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, spec: QuantSpec, role: str, layout: ScaleLayout):
        super().__init__()
        if role not in ("weight", "activation"):
            raise InputError(f"role is {role!r}; accepted: 'weight', 'activation'")
        self.spec = spec
        self.role = role
        self.layout = layout
        self.layer = ""
        self.calibrated = False
        self.signed = spec.signed is not False
        self.stats: RangeStats | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of the scale."""
        return self.layout.shape

    def set_range(self, stats: RangeStats) -> None:
        """Set scale and zero point from `stats`; `signed` is already decided."""
        raise NotImplementedError(f"{type(self).__name__} must define set_range(stats)")

    def current(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point for quantizing x now; entry i depends on entry i of a parameter, or on parameters with one entry.

        Called twice for one x where norms are collected and there are parameters.
        """
        return self.scale, self.zero_point

    def transform(self, x: Tensor) -> Tensor:
        """What is put on the grid in place of x, differentiable in x and in the quantizer's parameters; x itself by default.

        Of an activation, each value depends on itself and on the parameters of its own scale alone.
        """
        return x

    def pivots(self, w: Tensor) -> Tensor | None:
        """Where (flat indices) a weight's values are on which all of ``transform(w)`` depends; None: each may depend on every other.

        Only asked where `transform` does something; it makes per-sample gradients faster. An activation has none by contract.
        """
        return None

    def qrange(self) -> tuple[int, int]:
        """``(qmin, qmax)`` for the sign that was decided."""
        return self.spec.qrange(self.signed)

    @property
    def init(self) -> str:
        """The name of the initialisation."""
        return self.spec.init or self.inits[0]

    def code_range(self) -> CodeRange:
        """The codes that a range is found for."""
        return CodeRange(*self.qrange(), self.spec.symmetric, self.spec.semantics)

    def first_grid(self, stats: RangeStats) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point that `init` finds in `stats`, one of the names that `fastqat.quantizers.ranges` knows."""
        return INITS[self.init](stats, self.code_range())

    def new_stats(self) -> RangeStats:
        """Empty statistics that hold what `init` reads: of a weight every value, of an activation a sample of the stream."""
        kept = "all" if self.role == "weight" else "stream"
        return RangeStats(self.layout, kept if self.init in SAMPLING_INITS else None)

    def check(self, stats: RangeStats) -> None:
        """Raise InputError (a ValueError) that names the layer when `stats` is empty or not finite; reads the device once."""
        if stats.count == 0:
            raise InputError(f"{self.where}: its {self.role} is empty; there is no range to find")
        if not stats.low.is_meta and not bool((torch.isfinite(stats.low) & torch.isfinite(stats.high)).all()):
            raise InputError(f"{self.where}: its {self.role} holds NaN or infinite values; mend the model or the data before quantizing")

    @torch.no_grad()
    def initialise(self, stats: RangeStats) -> None:
        """Decide the sign, set the first scale from `stats` and mark the quantizer calibrated.

        Raises:
            InputError (a ValueError): as `check`, or the grid found is not usable; the message names the layer.
        """
        self.check(stats)
        if self.spec.signed == "auto" and not stats.low.is_meta:
            self.signed = bool((stats.low < 0).any())
        self.calibrated = False
        self.set_range(stats)
        self._check_grid()
        self.calibrated = True

    def _check_grid(self) -> None:
        scale, zero_point = self.scale, self.zero_point
        if scale.is_meta:
            return
        usable = ((scale > 0) & torch.isfinite(scale)).all()
        if zero_point is not None:
            usable = usable & _inside(zero_point, self.qrange())
        if not bool(usable):
            raise InputError(
                f"{self.where}: init {self.init!r} finds no usable grid for its {self.role}: the scale is not positive and finite, or the "
                f"zero point is outside {list(self.qrange())}; mend the model or the data, or use another init"
            )

    def initialise_from(self, x: Tensor) -> None:
        """`initialise` from the values of one tensor."""
        stats = self.new_stats()
        stats.update(x)
        self.initialise(stats)

    def args(self, x: Tensor) -> QuantArgs | None:
        """What the ops need to quantize x (dimension 0 of an activation is the batch); None while the range is observed.

        Raises:
            CalibrationError (a RuntimeError): the range is not known; the message names the layer.
        """
        if self.stats is not None:
            self.stats.update(x)
            return None
        if not self.calibrated:
            raise CalibrationError(
                f"{self.where}: the range of its {self.role} is not known; call fastqat.calibrate(model, batches) or load a "
                "calibrated checkpoint before the forward pass"
            )
        scale, zero_point = self.current(x)
        axis = None if self.layout.axis is None else self.layout.axis % x.dim()
        factor, per_scale = self._grad_factor(x)
        return QuantArgs(scale, zero_point, *self.qrange(), axis, self.layout.group_size, self.spec.semantics, factor, per_scale)

    def operand(self, x: Tensor) -> tuple[Tensor, QuantArgs | None]:
        """What the op reads in place of x, and its arguments; x itself and None while the range is observed. Raises as `args`."""
        args = self.args(x)
        return (x if args is None else self.transform(x)), args

    def _grad_factor(self, x: Tensor) -> tuple[float, bool]:
        """The factor g of numerics by name, and whether the number of elements that share a scale is still to be divided by.

        That number may be symbolic in a compiled graph, so the op counts it.
        """
        qmin, qmax = self.qrange()
        rule = self.paper_factor if self.spec.grad_factor == "paper" else self.spec.grad_factor
        if rule == "none":
            return 1.0, False
        if rule == "per_scale":
            return 1 / math.sqrt(qmax), True
        elements = x.numel() if self.role == "weight" else math.prod(x.shape[1:])
        return 1 / math.sqrt(max(elements, 1) * (qmax if rule == "paper" else qmax - qmin)), False

    def forward(self, x: Tensor) -> Tensor:
        """x quantized and dequantized, same shape and dtype; x itself while the range is observed."""
        x, a = self.operand(x)
        if a is None:
            return x
        scale, zero_point = a.scale, a.zero_point
        if a.per_scale:
            share = per_scale_share(x, scale)
            scale = scaled_gradient(scale, share)
            zero_point = None if zero_point is None else scaled_gradient(zero_point, share)
        return fake_quantize(
            x,
            scale,
            zero_point,
            qmin=a.qmin,
            qmax=a.qmax,
            axis=a.axis,
            group_size=a.group_size,
            semantics=a.semantics,
            grad_factor=a.grad_factor,
        )

    @property
    def where(self) -> str:
        """The layer, as error messages name it."""
        return where(self.layer)

    def extra_repr(self) -> str:
        sign = {True: "signed", False: "unsigned"}[self.signed] if self.calibrated or self.spec.signed != "auto" else "sign open"
        state = "" if self.calibrated else ", not calibrated"
        return f"{self.role}, {self.spec.bits} bit {sign}, per {self.spec.per}{state}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """Move, never cast: scales stay fp32 in a model that is made half or bfloat16."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def get_extra_state(self) -> Tensor:
        """The flags (calibrated, signed, bits) and the quantizer's name in utf-8, as uint8: state_dict holds tensors only."""
        return torch.tensor([self.calibrated, self.signed, self.spec.bits, *self.spec.quantizer.encode()], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.calibrated, self.signed = bool(state[0]), bool(state[1])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint without any entry of this quantizer is a float one: nothing of it is missing, nothing changes."""
        self._check_kind(state_dict, prefix)
        if prefix + self.state_key not in state_dict:
            return
        self._check_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_kind(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Refuse the entries of another quantizer; those saved without its name are told by their keys."""
        flags = state_dict.get(prefix + "_extra_state")
        name = "" if flags is None or flags.is_meta else bytes(flags[3:].tolist()).decode(errors="replace")
        found = [key.removeprefix(prefix) for key in state_dict if prefix and key.startswith(prefix)]
        if not name and found and self.state_key not in found:
            name = f"another one, with the entries {', '.join(found)}"
        if name and name != self.spec.quantizer:
            raise InputError(
                f"{_layer_of(prefix)}: the checkpoint's {self.role} quantizer is {name}, the model's is {self.spec.quantizer}; quantize "
                "both alike"
            )

    def _check_state(self, state_dict: dict[str, Any], prefix: str) -> None:
        layer, signed = _layer_of(prefix), self.signed
        learned = state_dict[prefix + self.state_key]
        if not learned.is_meta and not bool(((learned > 0) & torch.isfinite(learned)).all()):
            raise InputError(
                f"{layer}: the checkpoint's {self.role} {self.state_key} is not positive and finite; use another checkpoint or "
                "calibrate again"
            )
        flags = state_dict.get(prefix + "_extra_state")
        if flags is not None and not flags.is_meta:
            signed, bits = bool(flags[1]), int(flags[2])
            if bits != self.spec.bits or self.spec.signed not in ("auto", signed):
                got, own = f"{bits} bit signed={signed}", f"{self.spec.bits} bit signed={self.spec.signed}"
                raise InputError(f"{layer}: the checkpoint's {self.role} quantizer is {got}, the model's is {own}; quantize both alike")
        offset, zero_point = state_dict.get(prefix + "offset"), state_dict.get(prefix + "zero_point")
        if offset is not None and not offset.is_meta and not bool(torch.isfinite(offset).all()):
            raise InputError(f"{layer}: the checkpoint's {self.role} offset is not finite; use another checkpoint or calibrate again")
        qrange = self.spec.qrange(signed)
        if zero_point is not None and not zero_point.is_meta and not bool(_inside(zero_point, qrange)):
            raise InputError(
                f"{layer}: the checkpoint's {self.role} zero_point is outside {list(qrange)}; use another checkpoint or calibrate again"
            )


def _layer_of(prefix: str) -> str:
    return f"layer {prefix.rstrip('.').rpartition('.')[0]!r}"
