"""What one layer adds to the correction: two outputs as distributions, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat.methods.cascade_layers import Layer
from fastqat.ops.feature_kl.api import feature_kl

Distribution = Literal["channel", "spatial", "flat", "mse"]
Reduction = Literal["elements", "rows"]


def feature_map(output: Any, layer: Layer, distribution: Distribution) -> Tensor:
    """What is compared of the output of `layer`: the map ``[N, C, ...]``; for ``channel`` the means over its positions, fp32 ``[N, C]``.

    The first tensor of an output that is a tuple, a list or a mapping.

    Raises:
        InputError: there is no tensor of two or more dimensions in it, or ``spatial`` finds no positions.
    """
    while isinstance(output, (tuple, list, Mapping)) and output:
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    if not isinstance(output, Tensor) or output.dim() < 2:
        got = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"layer {layer.name!r} must give a tensor [N, C, ...]; got {got}; leave it out of layers=")
    if output.dim() == 2:
        if distribution == "spatial":
            raise InputError(f"layer {layer.name!r} gives {list(output.shape)}, without positions for 'spatial'; use 'channel' or 'flat'")
        return output
    output = output.movedim(layer.axis, 1)
    if distribution == "channel":
        return output.mean(tuple(range(2, output.dim())), dtype=torch.promote_types(output.dtype, torch.float32))
    return output


def divergence(student: Tensor, teacher: Tensor, layer: Layer, distribution: Distribution, reduction: Reduction) -> Tensor:
    """Of each sample ``[N]``, fp32: KL(p_Q ‖ p_F) of two results of `feature_map`, or their squared error; there may be no sample.

    Raises:
        InputError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"layer {layer.name!r} gives {list(student.shape)} in the student and {layer.teacher_name!r} {list(teacher.shape)} in the "
            "teacher; compare layers of one shape, in pairs STUDENT=TEACHER such as layers='layer1.0=layer1.4'"
        )
    if distribution == "mse":
        error = (student.float() - teacher.float()).square().flatten(1)
        return error.mean(1) if reduction == "elements" else error.sum(1)
    rows = feature_kl(student, teacher, distribution=distribution)
    values = student.shape[1:].numel() // rows.shape[1:].numel()
    each = rows if rows.dim() == 1 else rows.mean(1)
    return each / values if reduction == "elements" else each
