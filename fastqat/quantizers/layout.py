"""ScaleLayout: which elements of a tensor share one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .._errors import InputError

if TYPE_CHECKING:
    from .spec import QuantSpec

OUTPUT_AXIS, INPUT_AXIS = 0, 1
"""Dimensions of the weight of a linear or convolution layer: a scale per channel lies along the first, groups along the second."""


def where(layer: str) -> str:
    """The layer, as error messages name it."""
    return f"layer {layer!r}" if layer else "a layer without a name"


class ScaleLayout(NamedTuple):
    """The shape of the scales, the axis that they lie along (None: one for all), and the length of the groups on that axis.

    Shapes: ``[1]`` per tensor, ``[channels]`` per channel, and per group the shape of the tensor with the number of groups in place of
    the axis.
    """

    shape: tuple[int, ...] = (1,)
    axis: int | None = None
    group_size: int | None = None

    def split(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """A view of x and its dimensions that run over what shares a scale; what is left of it has the order of the scales."""
        if self.axis is None:
            return x.reshape(1, -1), [1]
        if self.group_size is not None:
            return x.unflatten(self.axis, (-1, self.group_size)), [self.axis + 1]
        view = x.unsqueeze(-1)  # one dimension more, so that there is one to reduce in a vector too
        return view, [dim for dim in range(view.dim()) if dim != self.axis % x.dim()]

    def rows(self, x: Tensor) -> Tensor:
        """x as ``[scales, elements that share one]``; a view where the memory allows it."""
        view, shared = self.split(x)
        kept = [dim for dim in range(view.dim()) if dim not in shared]
        return view.permute(*kept, *shared).flatten(0, len(kept) - 1).flatten(1)

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """`values`, one per scale, shaped so that they broadcast over x."""
        if self.axis is None:
            return values.reshape([1] * x.dim())
        if self.group_size is not None:
            return values.repeat_interleave(self.group_size, self.axis)
        return values.reshape([-1 if dim == self.axis % x.dim() else 1 for dim in range(x.dim())])


def scale_layout(
    spec: QuantSpec, role: str, *, channels: int | None, axis: int | None, shape: Sequence[int] | None, where: str
) -> ScaleLayout:
    """The layout that `spec` asks for: `channels` scales along `axis`, or those of a weight of `shape`.

    Raises:
        InputError (a ValueError): the sizes are not given, groups of an activation, or a group size that does not divide the weight.
    """
    if spec.granularity == "tensor":
        return ScaleLayout()
    if spec.group_size is not None:
        return _group_layout(spec.group_size, role, shape, where)
    if shape is not None and channels is None:
        axis = OUTPUT_AXIS if axis is None else axis
        channels = shape[axis]
    if channels is None or axis is None:
        raise InputError("granularity='channel' needs the number of channels and their axis: pass channels= and axis=")
    return ScaleLayout((channels,), axis)


def _group_layout(group_size: int, role: str, shape: Sequence[int] | None, where: str) -> ScaleLayout:
    if role != "weight":
        raise InputError(
            f"{where}: granularity ('group', {group_size}) of an activation, which would need scales for every sample and position; "
            "accepted for weights only: use 'tensor' or 'channel'"
        )
    if shape is None or len(shape) <= INPUT_AXIS:
        raise InputError(
            f"{where}: granularity ('group', {group_size}) needs a weight of two or more dimensions: pass its shape=, got {shape}"
        )
    length = shape[INPUT_AXIS]
    if length % group_size:
        raise InputError(
            f"{where}: groups of {group_size} do not divide the {length} inputs of its weight {list(shape)}; accepted: a divisor of "
            f"{length}; give the layer another granularity with QConfig(overrides=...)"
        )
    return ScaleLayout((*shape[:INPUT_AXIS], length // group_size, *shape[INPUT_AXIS + 1 :]), INPUT_AXIS, group_size)
