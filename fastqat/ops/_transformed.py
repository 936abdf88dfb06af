"""How an autograd Function of an op runs inside a transform of torch.func."""

from __future__ import annotations

from typing import Any

import torch


@torch.compiler.disable(reason="fastqat's operators run in eager mode inside the transforms of torch.func")
def apply_transformed(function: Any, *args: Any) -> Any:
    """``function.transformed.apply(*args)``, never traced by a compiler."""
    return function.transformed.apply(*args)
