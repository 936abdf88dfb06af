"""The gradient of the validation loss after one step of the last layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat._errors import InputError


class ValidationGradient:
    """∇L_V of the last layer at θ − η G, exactly, from the gradients of the validation samples at θ alone.

    A sample's gradient in bias and weight is [g ; g hᵀ] with g = p − y. The entry of its own class is the only one of g that is not
    positive, so that g gives y and p, these the logits log p (but for a constant that softmax does not see), and g hᵀ gives h. A step
    of the layer moves the logits by −η (G_bias + G_weight h).

    Args:
        features: ``[M, C (D + 1)]`` = [g ; g hᵀ] flattened, or ``[M, C]`` = g: then only the bias takes the step.
        classes: C.

    Raises:
        InputError: the width is no multiple of C, or the first C features are not p − y.
    """

    def __init__(self, features: Tensor, classes: int):
        count, width = features.shape
        if width % classes:
            raise InputError(
                f"last-layer gradients of {classes} classes have a multiple of {classes} features; got {width}; check classes="
            )
        error, weight = features[:, :classes].double(), features[:, classes:].double().reshape(count, classes, -1)
        self._onehot = torch.nn.functional.one_hot(error.argmin(1), classes).double()
        probabilities = error + self._onehot
        if bool(((probabilities < -1e-3) | (probabilities > 1.001)).any()) or bool((error.sum(1).abs() > 1e-3).any()):
            raise InputError(
                f"the first {classes} val_features must be p − y of {classes} classes; these are not; pass what "
                "score_dataset(..., features='gradient') gives with classes=C, or features='error'"
            )
        self._logits = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
        squares = error.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        self._inputs = torch.einsum("nc,ncd->nd", error, weight) / squares[:, None]

    def at(self, step: Tensor) -> Tensor:
        """The mean gradient after θ − `step` ``[C (D + 1)]``, in the same order."""
        classes = self._logits.shape[1]
        weight = step[classes:].reshape(classes, -1)
        error = (self._logits - step[:classes] - self._inputs @ weight.T).softmax(1) - self._onehot
        return torch.cat([error.mean(0), (error.T @ self._inputs).flatten() / len(error)])
