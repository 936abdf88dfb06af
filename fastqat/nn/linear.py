"""Quantized linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.quant_layer.api import quant_linear
from .layer import QuantLayer, autocast_input


class QuantLinear(QuantLayer, nn.Linear):
    """`torch.nn.Linear` with quantized weight and input: y = Q(x) Q(W)ᵀ + b.

    Args:
        *args, **kwargs: those of `torch.nn.Linear`.
        weight: QuantSpec of the weight, or None for float; per channel means per output feature, per group along the input features.
        activation: QuantSpec of the input, or None for float; per channel means per input feature.

    Shape: x [N, ..., I] → [N, ..., O]; dimension 0 is the batch (a one-dimensional x is one sample). Computes in the dtype of x,
    under autocast in autocast's. Keeps only x and the weight for the backward pass.

    Raises:
        CalibrationError (a RuntimeError): in forward, when the range of the input is not known yet.

    Example:
        >>> import torch, fastqat as fq
        >>> layer = fq.nn.QuantLinear(16, 4, weight=fq.QuantSpec(4))
        >>> layer(torch.ones(2, 16)).shape
        torch.Size([2, 4])
    """

    activation_axis = -1
    channels_attribute = "in_features"

    def forward(self, input: Tensor) -> Tensor:
        x = autocast_input(input)
        single = x.dim() == 1
        if single:
            x = x.unsqueeze(0)
        given, (x, weight, x_quant, w_quant) = x, self.operands(x)
        y = quant_linear(x, weight, self.bias, x_quant=x_quant, w_quant=w_quant, wanted=self.wanted(given, (x, weight)))
        return y.squeeze(0) if single else y
