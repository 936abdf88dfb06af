"""Public gradient norm of the last layer: validation and documentation."""

from __future__ import annotations

from torch import Tensor

from ..._errors import InputError
from .._checks import check_tensors
from ..logit_scores.api import DTYPES, check_inputs
from . import op


def grand_last(logits: Tensor, targets: Tensor, features: Tensor, *, bias: bool = True) -> Tensor:
    r"""Norm of each sample's cross-entropy gradient in the last linear layer, from the layer's input and output alone.

    .. math:: \lVert p - y \rVert \, \sqrt{1 + \lVert h \rVert^2}

    With p = softmax(logits), y the one-hot target and h the features: the weight's gradient is the outer product of p − y and h, the
    bias' is p − y. Reads C + D numbers per sample, once; nothing is averaged and no gradient flows through the result.

    Error at most 1e-5 of the value: ‖p − y‖ is that of `fastqat.logit_scores` (evs). A row of logits that holds NaN or +inf, or nothing but
    −inf, gives NaN, and so does a target outside ``[0, C)``: nothing is raised, since to look for one would make a GPU wait.

    Args:
        logits: ``[N, C]``, C ≥ 1, output of the layer; fp32, bf16, fp16 (fp64 on the reference backend). Rows at any stride are read
            in place, as those of `features`; elements of a row that are not neighbours cost one copy.
        targets: ``[N]`` int64 in ``[0, C)``.
        features: ``[N, D]``, input of the layer, of any of these dtypes; absolute values below 1e18.
        bias: whether the layer has one; without, the norm is ‖p − y‖ · ‖h‖.

    Returns:
        ``[N]``, ≥ 0, fp32 (fp64 when an input is), deterministic.

    Raises:
        InputError: an argument is no tensor, or shapes, dtypes or devices do not fit together.

    Source: GraNd, M. Paul, S. Ganguli, G. Dziugaite, Deep learning on a data diet, NeurIPS 2021 (arXiv 2107.07075), for the last layer.

    Example:
        >>> import torch
        >>> grand_last(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([[1.0, 0.0]]))
        tensor([1.])
    """
    check_tensors(features=features, targets=targets)
    check_inputs(logits, targets, None, soft=False)
    if features.dim() != 2 or features.shape[0] != logits.shape[0]:
        raise InputError(f"features has shape {list(features.shape)}; accepted: [{logits.shape[0]}, width], one row per row of logits")
    if features.dtype not in DTYPES:
        raise InputError(f"features is {features.dtype}; accepted: float32, bfloat16, float16, float64: use features.float()")
    if features.device != logits.device:
        raise InputError(f"features is on {features.device} and logits on {logits.device}; move both to one device")
    return op.grand_last(logits.detach(), targets, features.detach(), bias)
