"""How much drawing samples by their gradient norm can gain at best."""

from __future__ import annotations

from torch import Tensor

from fastqat._errors import InputError


def reweighting_bound(norms: Tensor) -> float:
    r"""ρ = (mean ‖g‖)² / mean ‖g‖²: the second moment that is left when samples are drawn in proportion to their gradient norm.

    An unbiased estimate of the mean gradient from one sample drawn with probability p_i and weighted by 1/(N p_i) has the second moment
    Σ ‖g_i‖² / (N² p_i). Uniform draws give mean ‖g‖²; p_i ∝ ‖g_i‖ gives the least that any p can, (mean ‖g‖)². So ρ lies in (0, 1], and
    no reweighting by whatever score can divide the noise of the gradient by more than 1/ρ. Where ρ is near 1 all norms are alike and
    there is nothing to gain by it; where it is small, a few samples carry the gradient. Computed in fp64.

    Args:
        norms: ‖g_i‖ of each sample, ``[N]``, at least 0: the columns ``grand`` or ``grand_last`` of a `ScoreTable`, say.

    Returns:
        ρ; 1 where all norms are 0.

    Raises:
        InputError: no norms, or some that are negative, NaN or infinite.

    Source: Zhao and Zhang, Stochastic optimization with importance sampling, ICML 2015; Katharopoulos and Fleuret, ICML 2018.

    Example:
        >>> import torch
        >>> reweighting_bound(torch.tensor([1.0, 1.0, 1.0])), reweighting_bound(torch.tensor([0.0, 0.0, 0.0, 2.0]))
        (1.0, 0.25)
    """
    values = norms.detach().double().flatten()
    if not values.numel() or not bool((values.isfinite() & (values >= 0)).all()):
        raise InputError(f"norms must be at least one finite number ≥ 0; got {values.numel()}, from {_range(values)}; check the model")
    scale = values.max()
    if scale == 0:
        return 1.0
    values = values / scale  # squares neither overflow nor vanish
    return float(values.mean().square() / values.square().mean())


def _range(values: Tensor) -> str:
    return f"{float(values.min())} to {float(values.max())}" if values.numel() else "nothing"


def reweighting_line(name: str, norms: Tensor) -> str:
    """One line for people: ρ of the column `name`, and what it says."""
    rho = reweighting_bound(norms)
    return f"rho = {rho:.3f} ({name}): no reweighting can bring the gradient's second moment below {rho:.1%} of that of uniform sampling"
