"""The quantized copy of a float model that a run trains."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from fastqat.nn.config import QConfig
from fastqat.nn.convert import quantize
from fastqat.quantizers import QuantSpec
from fastqat.train.config import TrainConfig


def qconfig_of(config: TrainConfig) -> QConfig | None:
    """The quantizers that `config` asks for; None: no quantization.

    Raises:
        InputError: ``qconfig`` is no short string of `fastqat.QConfig.parse`.

    Example:
        >>> qconfig_of(TrainConfig(qconfig="w2a32", grad_factor="per_scale")).weight.grad_factor
        'per_scale'
    """
    if config.qconfig == "none":
        return None
    parsed = QConfig.parse(config.qconfig)

    def changed(spec: QuantSpec | None) -> QuantSpec | None:
        return None if spec is None else replace(spec, grad_factor=config.grad_factor)

    return replace(parsed, weight=changed(parsed.weight), activation=changed(parsed.activation))


def make_student(config: TrainConfig, teacher: nn.Module) -> nn.Module:
    """A copy of `teacher`, quantized as `config` says; ranges of activations are not known yet."""
    qconfig = qconfig_of(config)
    return copy.deepcopy(teacher) if qconfig is None else quantize(teacher, qconfig)
