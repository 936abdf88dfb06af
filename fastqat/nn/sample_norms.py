"""Per-sample norms of one quantized layer: from what its op delivers to the parameters of the layer and of its quantizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ..ops.quant_layer.norms import SampleGradients, SampleNorms, Wanted
from ..ops.quant_layer.op import Needs
from ..quantizers import Quantizer
from ..quantizers.sample_gradients import ArgumentChain, added, transform_gradients
from ..quantizers.weight_gradients import weight_gradients

if TYPE_CHECKING:
    from .layer import QuantLayer

NOTHING: dict[str, Tensor] = {}


class _Side:
    """The weight or the activation of a layer, with the quantizer whose parameters count.

    Attributes:
        transformed: the quantizer and what it was given, where the op reads something else in its place that depends on what counts.
        chain: from the op's scale and zero point to the parameters; None where none counts.
    """

    def __init__(self, quantizer: Quantizer | None, role: str, names: frozenset[str], x: Tensor, read: Tensor):
        self.prefix = f"{role}_quantizer."
        self.transformed: tuple[Quantizer, Tensor] | None = None
        self.chain: ArgumentChain | None = None
        if quantizer is None or quantizer.stats is not None:
            return
        counts = any(name.startswith(self.prefix) for name in names)
        if read is not x and (counts or role in names):
            self.transformed = quantizer, x
        if counts:
            self.chain = ArgumentChain(quantizer, x)

    @property
    def scale(self) -> bool:
        return self.chain is not None and self.chain.scale

    @property
    def zero_point(self) -> bool:
        return self.chain is not None and self.chain.zero_point

    def through_arguments(self, scale: Tensor, zero_point: Tensor) -> dict[str, Tensor]:
        return {} if self.chain is None else self.chain(scale, zero_point)

    def named(self, *found: dict[str, Tensor]) -> dict[str, Tensor]:
        """What was `found` of each parameter, by the name that it has in the layer."""
        return {self.prefix + name: each for name, each in added(*found).items()}


def wanted(layer: QuantLayer, norms: SampleNorms, x: Tensor, reads: tuple[Tensor, Tensor], pad: Callable[[Tensor], Tensor]) -> Wanted:
    """What the layer asks of its op, so that the backward pass delivers what `norms` asks of the layer.

    Args:
        x: the layer's input; `reads`: what the op reads in place of it and of the weight, before `pad`.
    """
    names = norms.names
    weight = _Side(layer.weight_quantizer, "weight", names, layer.weight, reads[1])
    activation = _Side(layer.activation_quantizer, "activation", names, x, reads[0])
    counted = Needs(
        x=activation.transformed is not None,
        weight="weight" in names and weight.transformed is None,
        bias="bias" in names,
        x_scale=activation.scale,
        x_zero_point=activation.zero_point,
        w_scale=weight.scale,
        w_zero_point=weight.zero_point,
    )

    def deliver(found: SampleGradients) -> None:
        sq_norm, of_weight, of_activation = found.sq_norm, NOTHING, NOTHING
        if weight.transformed is not None:
            more, of_weight = weight_gradients(*weight.transformed, *found.weight_product(), "weight" in names)
            sq_norm = sq_norm if more is None else sq_norm + more
        if activation.transformed is not None:
            of_activation = transform_gradients(*activation.transformed, found.grad_x, pad)
        grads = {
            **weight.named(weight.through_arguments(found.w_scale, found.w_zero_point), of_weight),
            **activation.named(activation.through_arguments(found.x_scale, found.x_zero_point), of_activation),
        }
        learned = {name: layer.get_parameter(name).numel() for name in names if name not in ("weight", "bias")}
        norms.deliver(sq_norm, {name: grads.get(name, sq_norm.new_zeros(len(sq_norm), count)) for name, count in learned.items()})

    return Wanted(counted, norms.anchor, deliver)
