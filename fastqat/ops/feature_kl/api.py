"""Public divergence of feature maps: validation and documentation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._errors import InputError
from .._autograd import tracked
from .._checks import check_tensors
from . import op
from .reference import DISTRIBUTIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _check_map(name: str, x: Tensor, distribution: str) -> None:
    least = 3 if distribution == "spatial" else 2
    if x.dim() < least or 0 in x.shape[1:]:
        accepted = "[samples, channels, ...] with at least one channel and one position" + (
            "; without positions, distribution='channel' or 'flat'" if least == 3 else ""
        )
        raise InputError(f"{name} has shape {list(x.shape)}; accepted: {accepted}")
    if x.dtype not in DTYPES:
        raise InputError(f"{name} is {x.dtype}; accepted: float32, bfloat16, float16, float64: use {name}.float()")


def check_inputs(student: Tensor, teacher: Tensor, distribution: str) -> None:
    """Raise InputError for what does not fit together."""
    check_tensors(student=student, teacher=teacher)
    if distribution not in DISTRIBUTIONS:
        raise InputError(f"distribution is {distribution!r}; accepted: {', '.join(map(repr, DISTRIBUTIONS))}")
    _check_map("student", student, distribution)
    _check_map("teacher", teacher, distribution)
    if teacher.shape != student.shape:
        raise InputError(
            f"teacher has shape {list(teacher.shape)} and student {list(student.shape)}; accepted: equal shapes: compare layers of equal "
            "width and resolution"
        )
    if teacher.device != student.device:
        raise InputError(f"teacher is on {teacher.device} and student on {student.device}; move both to one device")
    if teacher.requires_grad and torch.is_grad_enabled():
        raise InputError("teacher requires a gradient, and none is computed for it; use teacher.detach()")


def feature_kl(student: Tensor, teacher: Tensor, *, distribution: str = "channel") -> Tensor:
    r"""KL divergence of the distributions that two feature maps stand for, and its gradient, without a softmax in memory.

    .. math::  \mathrm{KL}(p \,\Vert\, t) = \sum_i p_i (\log p_i - \log t_i), \qquad
               \frac{\partial\,\mathrm{KL}}{\partial x_i} = p_i (\log p_i - \log t_i - \mathrm{KL})

    with p the softmax of the student's values x and t that of the teacher's:

    ============  ==========================================  ==========  ===========================================
    distribution  softmax over                                result      kept for the backward
    ============  ==========================================  ==========  ===========================================
    ``channel``   channels, of the mean over all positions    ``[N]``     ``[N, C]``; each position gets 1 / L of the
                                                                          gradient, as one expanded tensor
    ``spatial``   positions, per channel                      ``[N, C]``  both maps, 4 numbers per channel
    ``flat``      all values of a sample                      ``[N]``     both maps, 4 numbers per sample
    ============  ==========================================  ==========  ===========================================

    Natural logarithms; nothing is averaged or scaled: a mean is the caller's. The forward pass reads both maps once; the backward of
    ``spatial`` and ``flat`` computes p again, and writes the gradient and nothing else of that size. The gradient goes to the student only.

    Error of a row at most 1e-5 of it + 1e-9: the sum is Σ p u − p + t with u = log(p / t), none of whose terms is negative, so that close
    maps lose no digits; equal maps give 0, and gradients of 0. The means of ``channel`` are fp32 numbers: where values are large beside
    their differences over the channels, that shows. The bits depend neither on the number of threads nor, on the CPU, on the instruction
    set. A value of −inf has probability 0; where only the teacher's is −inf the row is +inf, and its gradient −inf or NaN. A row with NaN
    or +inf, or of nothing but −inf, is NaN, and so is its gradient; nothing is raised.

    Args:
        student: ``[N, C, ...]`` with any number of positions L; without positions (``[N, C]``) ``channel`` and ``flat`` are the same and
            ``spatial`` is refused. fp32, bf16, fp16 (fp64 on the reference backend); computed in fp32. Contiguous and channels-last maps
            are read in place, at any stride between samples; others cost one copy.
        teacher: the same shape, of any of these dtypes, in the layout of the student (another costs one copy). A constant.
        distribution: as above.

    Returns:
        fp32 rows, ≥ 0 (fp64 when a map is).

    Raises:
        InputError: no tensor, shape, dtype, device or distribution not as above; a teacher that requires a gradient.
        RuntimeError: differentiated twice, or the backend asked for by name cannot run.

    Source: cascaded layer correction, Tong et al., QuaRC, 2025 (arXiv 2507.17768); which distribution a map stands for is our choice.

    Example:
        >>> import torch, fastqat as fq
        >>> student = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]], requires_grad=True)  # one sample, two channels, two positions
        >>> teacher = torch.zeros(1, 2, 2)
        >>> fq.feature_kl(student, teacher)
        tensor([0.1109], grad_fn=<FeatureKLBackward>)
        >>> fq.feature_kl(student, teacher, distribution="spatial").sum().backward()
        >>> student.grad
        tensor([[[ 0.2100, -0.2100],
                 [ 0.0000,  0.0000]]])
    """
    check_inputs(student, teacher, distribution)
    if tracked(student):
        return op.FeatureKL.apply(student, teacher.detach(), distribution)[0]
    return op.feature_kl(student.detach(), teacher.detach(), distribution)[0]
