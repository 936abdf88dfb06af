"""GradMatch: samples and weights whose gradients add up to the full gradient."""

from __future__ import annotations

from fastqat._errors import InputError
from fastqat.selection.geometry.blocks import mean_row
from fastqat.selection.geometry.matching_pursuit import matching_pursuit
from fastqat.selection.selectors.registry import Request, Selection, register_selector


@register_selector(
    "gradmatch",
    rule="orthogonal matching pursuit of min_w ‖Σ_S w_i g_i − ḡ‖² + λ‖w‖², w ≥ 0",
    needs=("features",),
    weights="mean",
    source="Killamsetty et al., ICML 2021 (arXiv 2103.00123), algorithm 2",
)
def gradmatch(request: Request, *, ridge: float = 0.5) -> Selection:
    """Positions in the order of picking, loss weights K w_i; exact, see `geometry.matching_pursuit.matching_pursuit`.

    Features: gradients of the samples, in the last layer (``features="gradient"``) or in the logits (``"error"``). ḡ is their mean over
    the group (a class, with labels). ``ridge``: λ, in units of ‖g‖²; λ is the same where sums stand in place of the means. Exactly
    ``budget`` picks: once no sample improves the match, without a ridge after D with a weight, the lowest indices follow with weight
    0, so that the match stays as it is (CORDS adds random samples of weight 1, DeepCore returns fewer samples).

    What the weights preserve is the gradient: the mean of weight · g_i approximates ḡ. Their own mean is not 1: the picks' gradients are
    larger than ḡ, the more so the better the model knows the others, and the mean weight falls in the course of a training, to below 0.1.
    So the mean of weight · loss is no estimate of the mean loss. CORDS and DeepCore divide by the sum of the weights: then the weighted
    mean gradient is longer than ḡ, as if the learning rate grew while the weights fall; to have that, divide by the mean weight.

    Raises:
        InputError: `ridge` is not a number ≥ 0.
    """
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < float("inf"):
        raise InputError(f"ridge must be a number ≥ 0; got {ridge!r}")
    features = request.given_features()
    picks, weights = matching_pursuit(features, mean_row(features), request.budget, ridge=float(ridge))
    return Selection(picks, weights * len(picks))
