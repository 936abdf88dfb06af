"""Tensors that are the same for all samples, told by where they come from: shapes do not tell, as with T positions in a batch of T."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils.weak import WeakTensorKeyDictionary

from .spread import Spread


class Constants:
    """What is not made of the model's input: parameters, buffers, tensors from elsewhere, new ones, and what is made of these alone.

    Where a function was not seen, its result may be in here although samples are in it; then it is followed as values that each sample
    has a copy of, which costs memory and is as right. The other way round would be wrong.
    """

    def __init__(self, is_input: Callable[[Tensor], bool]):
        self._is_input = is_input
        self._of_samples = WeakTensorKeyDictionary()

    def __contains__(self, x: object) -> bool:
        """Whether x, a tensor, is the same for all samples."""
        assert isinstance(x, Tensor)
        if isinstance(x, (nn.Parameter, Spread)):
            return True
        if x.requires_grad or x in self._of_samples:
            return False
        return x.dim() == 0 or x.layout != torch.strided or not self._is_input(x)

    def note(self, func: Any, result: Any, args: Any, kwargs: Any) -> None:
        """Enter what `func` has made of samples; asked for every function. What requires grad need not be entered."""
        if isinstance(result, Tensor) and result.requires_grad:
            return
        if not isinstance(result, (Tensor, tuple, list, dict)) and func is not Tensor.__setitem__:
            return
        made = _pytree.tree_leaves(args[0] if func is Tensor.__setitem__ else result)
        made = [x for x in made if isinstance(x, Tensor) and not isinstance(x, (nn.Parameter, Spread))]
        if made and any(isinstance(x, Tensor) and x not in self for x in _pytree.tree_leaves((args, kwargs))):
            self._of_samples.update([(x, True) for x in made])

    def forget(self) -> None:
        """Hold nothing any longer."""
        self._of_samples = WeakTensorKeyDictionary()
