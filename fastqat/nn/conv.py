"""Quantized convolutions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.quant_layer.api import quant_conv
from .layer import QuantLayer, autocast_input


class _QuantConv(QuantLayer):
    """The forward pass of a quantized convolution of any dimension."""

    activation_axis = 1
    channels_attribute = "in_channels"

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    kernel_size: tuple[int, ...]
    groups: int
    bias: Tensor | None
    padding_mode: Any
    _reversed_padding_repeated_twice: list[int]

    def forward(self, input: Tensor) -> Tensor:
        x = autocast_input(input)
        single = x.dim() == self.weight.dim() - 1
        if single:
            x = x.unsqueeze(0)  # before the quantizer sees it: its channel axis and gradient factor count from the batch dimension
        given, (x, weight, x_quant, w_quant) = x, self.operands(x)
        wanted = self.wanted(given, (x, weight))
        x, padding = self._pad(x)
        y = quant_conv(
            x,
            weight,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            x_quant=x_quant,
            w_quant=w_quant,
            wanted=wanted,
        )
        return y.squeeze(0) if single else y

    def padded(self, x: Tensor) -> Tensor:
        return self._pad(x)[0]

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """x padded as far as the op cannot, and the zeros on both sides that are left to the op."""
        none = (0,) * len(self.kernel_size)
        if self.padding_mode != "zeros":
            return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), none
        if not isinstance(self.padding, str):
            return x, self.padding
        if self.padding == "valid":
            return x, none
        total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if all(t % 2 == 0 for t in total):
            return x, tuple(t // 2 for t in total)
        return F.pad(x, self._reversed_padding_repeated_twice), none


class QuantConv1d(_QuantConv, nn.Conv1d):
    """`torch.nn.Conv1d` with quantized weight and input; as `QuantConv2d`, x [N, C, L]."""


class QuantConv2d(_QuantConv, nn.Conv2d):
    """`torch.nn.Conv2d` with quantized weight and input: y = Q(x) ∗ Q(W) + b.

    Args:
        *args, **kwargs: those of `torch.nn.Conv2d`; every padding and padding mode.
        weight: QuantSpec of the weight, or None for float; per channel means per output channel, per group along the input channels.
        activation: QuantSpec of the input, or None for float; per channel means per input channel.

    Shape: x [N, C, H, W] (or [C, H, W]) → [N, O, H', W']. Computes in the dtype of x, under autocast in autocast's. Keeps only x and
    the weight for the backward pass (with another padding mode than zeros, or an uneven ``"same"``: the padded x).

    Raises:
        CalibrationError (a RuntimeError): in forward, when the range of the input is not known yet.

    Example:
        >>> import torch, fastqat as fq
        >>> layer = fq.nn.QuantConv2d(3, 8, 3, padding=1, weight=fq.QuantSpec(4, granularity="channel"))
        >>> layer(torch.ones(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """


class QuantConv3d(_QuantConv, nn.Conv3d):
    """`torch.nn.Conv3d` with quantized weight and input; as `QuantConv2d`, x [N, C, D, H, W]."""


QuantConv = QuantConv2d
