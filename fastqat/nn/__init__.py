"""Quantized layers and the functions that put them into a model."""

from ..quantizers import QuantSpec
from .calibration import calibrate
from .config import QConfig
from .conv import QuantConv, QuantConv1d, QuantConv2d, QuantConv3d
from .convert import quantize
from .fake_quantize import FakeQuantize
from .linear import QuantLinear
from .param_groups import param_groups
from .shared import share_weight_quant
from .summary import Summary, summary

__all__ = [
    "FakeQuantize",
    "QConfig",
    "QuantConv",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantLinear",
    "QuantSpec",
    "Summary",
    "calibrate",
    "param_groups",
    "quantize",
    "share_weight_quant",
    "summary",
]
