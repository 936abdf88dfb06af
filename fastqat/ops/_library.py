"""How an operator enters torch: schema, implementation and fake kernel in one call; autograd stays a thin Function above it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("fastqat", "FRAGMENT")


def define_op(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define ``fastqat::<schema>`` for every device and return the callable operator.

    `implementation` picks its backend on real tensors; `fake` allocates what it would return.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastqat::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.fastqat, name).default


def without_autocast(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """`implementation` in the dtypes that it chooses: inside an autocast region torch would multiply in halves what it widened to fp32."""

    @functools.wraps(implementation)
    def run(x: torch.Tensor, *args: Any) -> Any:
        device = x.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return implementation(x, *args)
        with torch.autocast(device, enabled=False):
            return implementation(x, *args)

    return run


def define_vmap(operator: Any, rule: Callable[..., Any]) -> None:
    """Register the ``torch.func.vmap`` of `operator`: ``rule(info, in_dims, *args)`` returns the outputs and their batch dimensions."""
    torch.library.register_vmap(operator, rule, lib=_LIBRARY)
