"""fastqat: quantization-aware training that costs what float training costs, on the part of the data that matters."""

from . import methods, nn, selection
from ._backend import backends, use_backend
from ._errors import BackendError, CalibrationError, CheckpointError, DataError, FastqatError, InputError
from .nn import QConfig, QuantSpec, calibrate, param_groups, quantize, summary
from .norms import per_sample_grad_norms
from .ops.fake_quant.api import fake_quantize, quantize_codes
from .ops.fake_quant_all.api import fake_quantize_all
from .ops.feature_kl.api import feature_kl
from .ops.grad_norm.api import conv_grad_sq_norm, linear_grad_sq_norm
from .ops.logit_scores.api import LogitScores, logit_scores

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "CalibrationError",
    "CheckpointError",
    "DataError",
    "FastqatError",
    "InputError",
    "LogitScores",
    "QConfig",
    "QuantSpec",
    "backends",
    "calibrate",
    "conv_grad_sq_norm",
    "fake_quantize",
    "fake_quantize_all",
    "feature_kl",
    "linear_grad_sq_norm",
    "logit_scores",
    "methods",
    "nn",
    "param_groups",
    "per_sample_grad_norms",
    "quantize",
    "quantize_codes",
    "selection",
    "summary",
    "use_backend",
]
