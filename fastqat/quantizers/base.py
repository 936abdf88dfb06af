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
from .spec import QuantSpec
from .stats import RangeStats

SCALE_FLOOR = 2.0**-23
"""No quantizer uses a scale below this: the epsilon of fp32, as torch's own observers."""


class Quantizer(nn.Module):
    """Base of the quantizers: holds what one tensor needs and hands it to the ops as `QuantArgs`.

    A subclass sets `scale` ([1] or [channels], fp32) and `zero_point` (like scale, or None) in its ``__init__`` and writes
    `set_range` (first scale from statistics) and, where the range moves while training, `current`.
    The flags `calibrated` and `signed` are Python values (no host sync in the forward pass) and part of the state_dict.

    Attributes:
        spec: the QuantSpec.
        role: ``"weight"`` or ``"activation"``.
        layer: name of the layer in the model, for messages; set by `fastqat.quantize` and `fastqat.calibrate`.
        calibrated: the range is known.
        signed: the codes have a sign; with ``signed="auto"`` decided when the range is initialised.
        stats: a `RangeStats` while the range is observed (`fastqat.calibrate`), else None.
    """

    inits: ClassVar[tuple[str, ...]]
    has_zero_point: ClassVar[bool] = False

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, spec: QuantSpec, role: str, *, channels: int | None = None, axis: int | None = None):
        super().__init__()
        if role not in ("weight", "activation"):
            raise InputError(f"role is {role!r}; accepted: 'weight', 'activation'")
        per_channel = spec.granularity == "channel"
        if per_channel and (channels is None or axis is None):
            raise InputError("granularity='channel' needs the number of channels and their axis: pass channels= and axis=")
        self.spec = spec
        self.role = role
        self.axis = axis if per_channel else None
        self.size = channels if per_channel and channels is not None else 1
        self.layer = ""
        self.calibrated = False
        self.signed = spec.signed is not False
        self.stats: RangeStats | None = None

    def set_range(self, stats: RangeStats) -> None:
        """Set scale and zero point from `stats`; `signed` is already decided."""
        raise NotImplementedError(f"{type(self).__name__} must define set_range(stats)")

    def current(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point for quantizing x now."""
        return self.scale, self.zero_point

    def qrange(self) -> tuple[int, int]:
        """``(qmin, qmax)`` for the sign that was decided."""
        return self.spec.qrange(self.signed)

    def check(self, stats: RangeStats) -> None:
        """Raise InputError (a ValueError) that names the layer when `stats` is empty or not finite; reads the device once."""
        if stats.count == 0:
            raise InputError(f"{self.where}: its {self.role} is empty; there is no range to find")
        if not stats.low.is_meta and not bool((torch.isfinite(stats.low) & torch.isfinite(stats.high)).all()):
            raise InputError(f"{self.where}: its {self.role} holds NaN or infinite values; mend the model or the data before quantizing")

    @torch.no_grad()
    def initialise(self, stats: RangeStats) -> None:
        """Decide the sign, set the first scale from `stats` and mark the quantizer calibrated; raises as `check`."""
        self.check(stats)
        if self.spec.signed == "auto" and not stats.low.is_meta:
            self.signed = bool((stats.low < 0).any())
        self.set_range(stats)
        self.calibrated = True

    def initialise_from(self, x: Tensor) -> None:
        """`initialise` from the values of one tensor."""
        stats = RangeStats(self.axis)
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
        qmin, qmax = self.qrange()
        per_scale = self.spec.grad_factor == "per_scale"
        axis = None if self.axis is None else self.axis % x.dim()
        return QuantArgs(scale, zero_point, qmin, qmax, axis, None, self.spec.semantics, self._grad_factor(x), per_scale)

    def _grad_factor(self, x: Tensor) -> float:
        """The factor g of numerics by name; ``"per_scale"`` is completed inside the op, which knows how many elements share a scale."""
        qmin, qmax = self.qrange()
        rule = self.spec.grad_factor
        if rule == "none":
            return 1.0
        if rule == "per_scale":
            return 1 / math.sqrt(qmax)
        elements = x.numel() if self.role == "weight" else math.prod(x.shape[1:])
        return 1 / math.sqrt(max(elements, 1) * (qmax if rule == "paper" else qmax - qmin))

    def forward(self, x: Tensor) -> Tensor:
        """x quantized and dequantized, same shape and dtype; x itself while the range is observed."""
        a = self.args(x)
        if a is None:
            return x
        scale = a.scale
        if a.per_scale and scale.requires_grad:
            # Same bits, smaller gradient; as tensor maths, so that a compiled graph serves every batch size.
            share = 1 / math.sqrt(max(x.numel() // scale.numel(), 1))
            scale = scale.detach() + (scale - scale.detach()) * share
        return fake_quantize(
            x, scale, a.zero_point, qmin=a.qmin, qmax=a.qmax, axis=a.axis, semantics=a.semantics, grad_factor=a.grad_factor
        )

    @property
    def where(self) -> str:
        """The layer, as error messages name it."""
        return f"layer {self.layer!r}" if self.layer else "a layer without a name"

    def extra_repr(self) -> str:
        sign = {True: "signed", False: "unsigned"}[self.signed] if self.calibrated or self.spec.signed != "auto" else "sign open"
        state = "" if self.calibrated else ", not calibrated"
        return f"{self.role}, {self.spec.bits} bit {sign}, per {self.spec.granularity}{state}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """Move, never cast: scales stay fp32 in a model that is made half or bfloat16."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def get_extra_state(self) -> Tensor:
        """The flags (calibrated, signed, bits) as a uint8 tensor [3], so that state_dict holds tensors only."""
        return torch.tensor([self.calibrated, self.signed, self.spec.bits], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.calibrated, self.signed = bool(state[0]), bool(state[1])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint without this quantizer's scale is a float one: nothing of it is missing, nothing changes."""
        if prefix + "scale" not in state_dict:
            return
        self._check_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_state(self, state_dict: dict[str, Any], prefix: str) -> None:
        layer = f"layer {prefix.rstrip('.').rpartition('.')[0]!r}"
        scale = state_dict[prefix + "scale"]
        if not scale.is_meta and not bool(((scale > 0) & torch.isfinite(scale)).all()):
            raise InputError(
                f"{layer}: the checkpoint's {self.role} scale is not positive and finite; use another checkpoint or calibrate again"
            )
        flags = state_dict.get(prefix + "_extra_state")
        if flags is None:
            return
        signed, bits = bool(flags[1]), int(flags[2])
        if bits != self.spec.bits or self.spec.signed not in ("auto", signed):
            got, own = f"{bits} bit signed={signed}", f"{self.spec.bits} bit signed={self.spec.signed}"
            raise InputError(f"{layer}: the checkpoint's {self.role} quantizer is {got}, the model's is {own}; quantize both alike")
