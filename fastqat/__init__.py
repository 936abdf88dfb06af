"""fastqat: quantization-aware training that costs what float training costs, on the part of the data that matters."""

from ._backend import backends, use_backend
from .ops.fake_quant.api import fake_quantize, quantize_codes

__version__ = "0.1.0"
__all__ = ["backends", "fake_quantize", "quantize_codes", "use_backend"]
