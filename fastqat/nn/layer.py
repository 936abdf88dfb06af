"""What every quantized layer shares: its two quantizers, their life cycle, and autocast."""

from __future__ import annotations

from types import FrameType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.quant_layer.api import QuantArgs
from ..ops.quant_layer.norms import SampleNorms, Wanted
from ..quantizers import Quantizer, QuantSpec, make_quantizer
from .sample_norms import wanted
from .weights import is_running, quantize_alone, version


class Quantizers(NamedTuple):
    """The two quantizers of a layer; None means float."""

    weight: Quantizer | None
    activation: Quantizer | None


class QuantLayer(nn.Module):
    """Mixin in front of a torch.nn layer: quantizes its weight and its input.

    A float checkpoint loads strictly: the quantizers' entries are never missing, and the weight's scale is found anew.
    """

    activation_axis: ClassVar[int]
    channels_attribute: ClassVar[str]

    weight: Tensor
    weight_quantizer: Quantizer | None
    activation_quantizer: Quantizer | None
    shares_weight_quant = False  # set by `share_weight_quant`
    w_hat: Tensor | None = None  # the quantized weight while a forward of the model that shares is running
    w_hat_origin: tuple[FrameType, int] | None = None  # that forward's call, and the version of the weight; None if torch.compile traced it
    sample_norms: SampleNorms | None = None  # set by `per_sample_grad_norms` while it collects

    def __init__(self, *args: Any, weight: QuantSpec | None = None, activation: QuantSpec | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weight_quantizer, self.activation_quantizer = self.build_quantizers(self, weight, activation)

    @classmethod
    def build_quantizers(cls, layer: nn.Module, weight: QuantSpec | None, activation: QuantSpec | None, name: str = "") -> Quantizers:
        """Quantizers for `layer`, a plain torch layer too, on its device and in its mode; the weight's is initialised.

        Raises:
            InputError (a ValueError): the weight is empty or not finite, or its groups do not fit; the message has `name`.
        """
        values: Tensor = layer.weight  # type: ignore[assignment]  # Module types attributes as Tensor | Module
        quantizers = Quantizers(
            None if weight is None else make_quantizer(weight, "weight", shape=values.shape, layer=name),
            None
            if activation is None
            else make_quantizer(
                activation, "activation", channels=getattr(layer, cls.channels_attribute), axis=cls.activation_axis, layer=name
            ),
        )
        for quantizer in quantizers:
            if quantizer is not None:
                quantizer.to(values.device).train(layer.training)
        if quantizers.weight is not None:
            quantizers.weight.initialise_from(values)
        return quantizers

    @classmethod
    def adopt(cls, layer: nn.Module, quantizers: Quantizers) -> None:
        """Turn the torch layer into this class in place: parameters, hooks, and every reference to it stay what they are."""
        layer.__class__ = cls
        for role, quantizer in quantizers._asdict().items():
            setattr(layer, f"{role}_quantizer", quantizer)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, QuantArgs | None, QuantArgs | None]:
        """x and the weight as the op reads them, and how it quantizes each; None for what stays float or is quantized already."""
        x, x_quant = (x, None) if self.activation_quantizer is None else self.activation_quantizer.operand(x)
        quantizer = self.weight_quantizer
        if quantizer is None:
            return x, self.weight, x_quant, None
        if self.shares_weight_quant and self.sample_norms is None:
            w_hat = self._shared_w_hat()
            return x, quantize_alone(quantizer, self.weight) if w_hat is None else w_hat, x_quant, None
        weight, w_quant = quantizer.operand(self.weight)
        return x, weight, x_quant, w_quant

    def wanted(self, x: Tensor, reads: tuple[Tensor, Tensor]) -> Wanted | None:
        """What the op is to deliver from its backward pass, where norms are collected; `reads` is what it reads of x and the weight."""
        norms = self.sample_norms
        if norms is None or not torch.is_grad_enabled():
            return None
        with torch._C.DisableTorchFunction():  # the mode of a measured pass need not see these dozens of small functions
            return wanted(self, norms, x, reads, self.padded)

    def padded(self, x: Tensor) -> Tensor:
        """x as the op takes it."""
        return x

    def _shared_w_hat(self) -> Tensor | None:
        """w_hat if it holds: a forward that ended by KeyboardInterrupt leaves it behind, for torch runs hooks after an Exception only."""
        if self.w_hat is None or self.w_hat_origin is None or torch.compiler.is_compiling():
            return self.w_hat
        frame, of_version = self.w_hat_origin
        return self.w_hat if version(self.weight) == of_version and is_running(frame) else None

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles get: nothing of a forward that runs or was interrupted, nor of a collection."""
        return {name: value for name, value in self.__dict__.items() if name not in ("w_hat", "w_hat_origin", "sample_norms")}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        quantizer = self.weight_quantizer
        if quantizer is None or prefix + "weight" not in state_dict:
            return
        if f"{prefix}weight_quantizer.{quantizer.state_key}" not in state_dict:
            quantizer.layer = quantizer.layer or prefix.rstrip(".")
            quantizer.initialise_from(self.weight)


def autocast_input(x: Tensor) -> Tensor:
    """x in the dtype of the autocast region it is used in, as torch casts the input of a float layer."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # meta
        return x
    if not torch.is_autocast_enabled(device) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))
