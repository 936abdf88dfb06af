"""A quantizer as a module of its own."""

from __future__ import annotations

from torch import Tensor, nn

from ..quantizers import QuantSpec, make_quantizer


class FakeQuantize(nn.Module):
    """A tensor's own quantizer, for outputs and residual adds: x → x_hat, same shape and dtype; calibrated with the model.

    Args:
        spec: how to quantize.
        channels, axis: size and position of the channels, with ``granularity="channel"`` only.

    Dimension 0 of x is the batch. Raises CalibrationError (a RuntimeError) in forward while the range is not known.

    Example:
        >>> import torch, fastqat as fq
        >>> module = fq.nn.FakeQuantize(fq.QuantSpec(8, signed="auto"))
        >>> _ = fq.calibrate(module, [torch.rand(4, 3)])
        >>> module(torch.zeros(1, 3))
        tensor([[0., 0., 0.]], grad_fn=<FakeQuantizeBackward>)
    """

    def __init__(self, spec: QuantSpec, *, channels: int | None = None, axis: int = 1):
        super().__init__()
        self.quantizer = make_quantizer(spec, "activation", channels=channels, axis=axis)

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x)
