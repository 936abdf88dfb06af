"""What a pass measured."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._errors import InputError


class _NotThere(InputError, AttributeError):
    """A result that cannot be read; `hasattr` says no."""


class GradNorms:
    """Gradient norms of the samples of one pass, of each sample's own loss; readable once the block has ended.

    Attributes:
        total: ``[N]``, norm over all parameters that count.
        sq_total: ``[N]``, its square, as it was summed.
        layers: with ``per_layer=True``: name of the module, as `named_modules` has it → ``[N]``, in the order of the model. A parameter
            that several modules share counts for the first.
        scale_grads: with ``scale_grads=True``: ``[N, S]``, gradients of the quantizers' parameters in the order of `named_parameters`.
        scale_names: the S names of its columns; ``name[i]`` where a parameter has several elements.

    Dtype fp32, fp64 where the model computes in it; on the model's device.
    """

    total: Tensor
    sq_total: Tensor
    layers: dict[str, Tensor]
    scale_grads: Tensor
    scale_names: tuple[str, ...]

    def __init__(self) -> None:
        self._reason = "the block has not ended yet: read the norms after it"

    def __getattr__(self, name: str) -> Any:
        if name not in GradNorms.__annotations__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        raise _NotThere(f"{name} is not there: {self._missing.get(name) or self._reason}")

    @property
    def _missing(self) -> dict[str, str]:
        """Why an attribute is absent after a pass that went well."""
        return self.__dict__.get("_not_asked", {})

    def fail(self) -> None:
        """The block raised: nothing can be read."""
        self._reason = "the block ended with an error"

    def fill(self, **results: Any) -> None:
        """Take the results; those that are None were not asked for."""
        options = {"layers": "per_layer", "scale_grads": "scale_grads", "scale_names": "scale_grads"}
        self._not_asked = {name: f"pass {options[name]}=True" for name, value in results.items() if value is None}
        self.__dict__.update({name: value for name, value in results.items() if value is not None})
