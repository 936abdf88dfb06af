"""A rule for users' layers that multiply by a scale and add a shift, each a scalar or one value per channel."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..._errors import InputError
from ...ops.affine_grad_norm import op, reference
from ...ops.affine_grad_norm.reference import Statistics
from .affine import Operands, as_one_channel, by_channel
from .registry import Names, Rule


class ScaleRule(Rule):
    """Rule of a layer ``y = weight · x + bias`` whose parameters have one element, or one for each index of dimension `axis` of x.

    Not registered itself: subclass it, name the parameters, and register that. It reads the shapes of the parameters only, so the layer may
    store them as ``[C]`` or as ``[C, 1, 1]``.

    Attributes:
        weight: name of the parameter that multiplies x; None without one.
        bias: name of the parameter that is added; None without one.
        axis: dimension of x that the parameters run along, 1 for pictures ``[N, C, H, W]``, −1 for tokens ``[N, T, C]``; not 0, the batch.

    Raises:
        InputError: a parameter has neither one element nor as many as dimension `axis` of x.

    Example:
        >>> import torch
        >>> import fastqat as fq
        >>> from fastqat.norms import ScaleRule, register_rule
        >>> class LayerScale(torch.nn.Module):  # of a transformer
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.gamma = torch.nn.Parameter(torch.full((width,), 1e-5))
        ...     def forward(self, x):
        ...         return x * self.gamma
        >>> @register_rule(LayerScale)
        ... class LayerScaleRule(ScaleRule):
        ...     weight, axis = "gamma", -1
        >>> layer, x = LayerScale(2), torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
        >>> with fq.per_sample_grad_norms(layer, loss_reduction="sum") as norms:
        ...     layer(x).sum().backward()
        >>> norms.total
        tensor([5., 1.])
    """

    weight: ClassVar[str | None] = None
    bias: ClassVar[str | None] = None
    axis: ClassVar[int] = 1

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.parameters = frozenset(name for name in (cls.weight, cls.bias) if name is not None)

    def grads(self, layer: Any, x: Tensor, grad_y: Tensor, names: Names) -> dict[str, Tensor]:
        found = {}
        for name in names:
            operands = self._operands(layer, name, x, grad_y)
            grad = reference.weight_gradient(*operands) if name == self.weight else reference.bias_gradient(operands.grad_y)
            found[name] = grad.reshape(x.shape[0], *layer.get_parameter(name).shape)
        return found

    def sq_norm(self, layer: Any, x: Tensor, grad_y: Tensor, names: Names) -> Tensor:
        first, *rest = sorted(names)
        operands = self._operands(layer, first, x, grad_y)
        if rest and layer.get_parameter(first).numel() == layer.get_parameter(rest[0]).numel():
            return op.sq_norm(*operands)
        total = op.sq_norm(*operands, first == self.weight, first == self.bias)
        return total + self.sq_norm(layer, x, grad_y, frozenset(rest)) if rest else total

    def _operands(self, layer: Any, name: str, x: Tensor, grad_y: Tensor) -> Operands:
        """x and grad_y as the parameter `name` sees them."""
        elements, axis = layer.get_parameter(name).numel(), self.axis
        if elements == 1:
            return Operands(*as_one_channel(x, grad_y), Statistics("none"))
        if not -x.dim() < axis < x.dim() or axis == 0 or elements != x.shape[axis]:
            raise InputError(
                f"{type(self).__name__}: {name} has {elements} elements and x is {list(x.shape)}; accepted: one element, or as many as "
                f"dimension {axis} of x, which must not be the batch. Set `axis` to the dimension that {name} runs along"
            )
        return Operands(by_channel(x, axis), by_channel(grad_y, axis), Statistics("none"))
