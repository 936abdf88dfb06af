"""DeepFool: how far a sample is from the decision boundary, measured in its own values."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat._errors import InputError
from fastqat._modes import frozen
from fastqat.selection.budget import check_count
from fastqat.selection.scores.registry import Probe, register_score


@register_score(
    "deepfool",
    formula="‖r‖₂ of the smallest r found with argmax f(x + r) ≠ argmax f(x)",
    direction="smallest",
    needs=("inputs",),
    source="DeepFool, Moosavi-Dezfooli et al., CVPR 2016 (arXiv 1511.04599); as a score, Ducoffe & Precioso 2018 (arXiv 1802.09841)",
)
def deepfool(probe: Probe, *, max_iter: int = 50, overshoot: float = 0.02, num_classes: int = 10) -> Tensor:
    """Length of the perturbation at which the prediction changes, by steps to the nearest boundary of the linearised model. ``[N]`` fp32.

    Each step goes to min_k |f_k − f_ŷ| / ‖∇f_k − ∇f_ŷ‖ over the `num_classes` likeliest classes, ŷ the first prediction; of a linear model
    the first step is the exact distance. Samples whose prediction has changed leave the batch. A sample that still has its prediction
    after `max_iter` steps gets the length so far, one without a gradient ∞, one with NaN logits NaN.

    One forward and `num_classes` backward passes per step, `max_iter` steps for a batch whose slowest sample needs as many, and about
    five times the memory of the input. No gradient is left in the parameters. The model is in eval mode, as
    `fastqat.selection.score_dataset` puts it. In fp32 whatever the model computes in.

    Args:
        max_iter: most steps.
        overshoot: η: the prediction is tried at x + (1 + η) r, so that rounding does not leave it on the boundary; r itself is measured.
        num_classes: how many of the likeliest classes are tried, the prediction included.

    Raises:
        InputError: the input is not a floating tensor, the model has one class, an option is out of range, or the model's forward
            gives no gradient of the input.
    """
    _check(probe, max_iter, overshoot, num_classes)
    logits = probe.logits.detach()
    classes = logits.topk(min(num_classes, logits.shape[1]), dim=1).indices
    x = probe.x.detach().float()
    moved, length = torch.zeros_like(x), torch.zeros(len(x), device=x.device)
    length[logits.isnan().any(1)] = torch.nan
    active = length.isfinite().nonzero().flatten()
    with frozen(probe.model), torch.enable_grad():
        for _ in range(max_iter):
            place = (x[active] + (1 + overshoot) * moved[active]).to(probe.x.dtype).requires_grad_()
            seen = probe.run(place)
            same = seen.argmax(1) == classes[active, 0]
            if not bool(same.any()):
                break
            step, distance = _to_boundary(seen, place, classes[active])
            active, step, distance = active[same], step[same], distance[same]
            moved[active] += step
            length[active] = torch.where(distance.isfinite(), moved[active].flatten(1).norm(dim=1), torch.inf)
            active = active[distance.isfinite() & (distance > 0)]
    return length


def _check(probe: Probe, max_iter: int, overshoot: float, num_classes: int) -> None:
    if not isinstance(probe.x, Tensor) or not probe.x.is_floating_point():
        got = f"a tensor of {probe.x.dtype}" if isinstance(probe.x, Tensor) else type(probe.x).__name__
        raise InputError(f"deepfool moves the input, which must be one floating tensor; got {got}; use margin or entropy for other inputs")
    if probe.logits.shape[1] < 2:
        raise InputError("deepfool measures the distance to another class; the model has only one")
    check_count("max_iter", max_iter)
    check_count("num_classes of deepfool", num_classes, least=2)
    if not overshoot >= 0:
        raise InputError(f"overshoot must be ≥ 0; got {overshoot}; 0.02 is the paper's")


def _to_boundary(logits: Tensor, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The step from `x` to the nearest boundary of the linearised model, and its length: 0 and ∞ where no class has a gradient."""
    if not logits.requires_grad:
        raise InputError("deepfool needs the gradient of the logits in the input; the forward gives none: remove its no_grad or detach()")
    chosen = logits.gather(1, classes)
    own = torch.autograd.grad(chosen[:, 0].sum(), x, retain_graph=True)[0].float()
    step, distance = torch.zeros_like(own), own.new_full((len(own),), torch.inf)
    for k in range(1, classes.shape[1]):
        towards = torch.autograd.grad(chosen[:, k].sum(), x, retain_graph=k + 1 < classes.shape[1])[0].float() - own
        gap, norm = (chosen[:, k] - chosen[:, 0]).detach().float().abs(), towards.flatten(1).norm(dim=1)
        ratio = torch.where(norm > 0, gap / norm, torch.inf)
        scale = torch.where(ratio < distance, ratio / norm, 0).view(-1, *[1] * (x.dim() - 1))
        step = torch.where(scale > 0, scale * towards, step)
        distance = torch.minimum(distance, ratio)
    return step, distance
