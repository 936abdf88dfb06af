"""Quantizers: one registered file each; `list_quantizers` names them."""

from .._loading import load_all
from .base import Quantizer
from .dorefa import DoReFa
from .lsq import LSQ
from .lsq_plus import LSQPlus
from .minmax import MinMax
from .pact import PACT
from .ranges import SCALE_FLOOR
from .registry import list_quantizers, make_quantizer, register_quantizer
from .spec import QuantSpec

load_all(__name__, __path__)

__all__ = [
    "LSQ",
    "PACT",
    "SCALE_FLOOR",
    "DoReFa",
    "LSQPlus",
    "MinMax",
    "QuantSpec",
    "Quantizer",
    "list_quantizers",
    "make_quantizer",
    "register_quantizer",
]
