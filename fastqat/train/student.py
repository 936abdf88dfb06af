"""The quantized copy of a float model that a run trains."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from fastqat.nn.config import QConfig
from fastqat.nn.convert import quantize
from fastqat.quantizers import QuantSpec
from fastqat.quantizers.registry import quantizer_class
from fastqat.train.config import TrainConfig

_PAPER_INITS = {"lsq_plus": ("sigma", "mse")}
"""Quantizer → first ranges of weights and of activations, where its paper has two and the defaults are others."""


def qconfig_of(config: TrainConfig) -> QConfig | None:
    """The quantizers that `config` asks for; None: no quantization.

    Activations have a zero point where the quantizer knows one. LSQ+ starts as its paper has it: weights at μ ± 3σ, activations at the
    clipping of least squared error (arXiv 2004.09576, section 3.2).

    Raises:
        InputError: ``qconfig`` is no short string of `fastqat.QConfig.parse`, or asks for what the quantizer has not.

    Example:
        >>> qconfig_of(TrainConfig(qconfig="w2a32", grad_factor="per_scale")).weight.grad_factor
        'per_scale'
        >>> qconfig_of(TrainConfig(qconfig="w4a4", quantizer="lsq_plus")).activation.symmetric
        False
    """
    if config.qconfig == "none":
        return None
    parsed = QConfig.parse(config.qconfig)
    weight_init, activation_init = _PAPER_INITS.get(config.quantizer, (None, None))
    symmetric = not quantizer_class(config.quantizer).has_zero_point

    def changed(spec: QuantSpec | None, **own: Any) -> QuantSpec | None:
        return None if spec is None else replace(spec, quantizer=config.quantizer, grad_factor=config.grad_factor, **own)

    weight = changed(parsed.weight, init=weight_init)
    return replace(parsed, weight=weight, activation=changed(parsed.activation, init=activation_init, symmetric=symmetric))


def make_student(config: TrainConfig, teacher: nn.Module) -> nn.Module:
    """A copy of `teacher`, quantized as `config` says; ranges of activations are not known yet."""
    qconfig = qconfig_of(config)
    return copy.deepcopy(teacher) if qconfig is None else quantize(teacher, qconfig)
