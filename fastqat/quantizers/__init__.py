"""Quantizers: one registered file each; `list_quantizers` names them."""

from .._loading import load_all
from .base import SCALE_FLOOR, Quantizer
from .lsq import LSQ
from .minmax import MinMax
from .registry import list_quantizers, make_quantizer, register_quantizer
from .spec import QuantSpec

load_all(__name__, __path__)

__all__ = ["LSQ", "SCALE_FLOOR", "MinMax", "QuantSpec", "Quantizer", "list_quantizers", "make_quantizer", "register_quantizer"]
