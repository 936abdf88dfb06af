"""The operator ``fastqat::grad_sq_norm``: schema, choice of backend and form, fake kernel. It has no gradient of its own."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from ... import _backend
from ..._errors import InputError
from .._library import define_op, without_autocast
from . import reference
from .forms import Form, cheapest
from .geometry import Geometry
from .launch import Triton
from .native import Cuda, Native

OP = "grad_norm"

_backend.register(OP, "reference", reference)
_backend.register(OP, "triton", Triton)
_backend.register(OP, "cuda", Cuda)
_backend.register(OP, "cpu", Native)


_CHUNK = 1 << 22  # elements that are widened to fp32 at a time: 16 MB


@without_autocast
def _forward(
    x: Tensor, grad_y: Tensor, mask: Tensor | None, slope: Tensor | None, numbers: list[int], bias: bool, form: str
) -> tuple[Tensor, Tensor]:
    geometry = Geometry.decode(numbers)
    implementation = _backend.pick(OP, x, grad_y)
    forms = implementation.FORMS if mask is None else implementation.masked_forms(mask)
    if form == "auto":
        form = cheapest(forms, x, grad_y, geometry, mask, slope)
    elif form not in forms:
        raise InputError(
            f"form is {form!r}; accepted by this backend, {'with' if mask is not None else 'without'} a mask: auto, {', '.join(forms)}"
        )
    if x.numel() == 0 or grad_y.numel() == 0:
        implementation, form = reference, "direct"  # there is no gradient but the bias's; kernels need not look for empty tensors
    if form == "direct":
        sq_norm, inner = implementation.direct(x, grad_y, mask, slope, geometry, bias)
    else:
        sq_norm = implementation.gram(x, grad_y, mask, geometry, bias, cast(Form, form))
        inner = None if slope is None else inner_products(x, grad_y, slope, geometry)
    return sq_norm, sq_norm.new_empty(x.shape[0], 0) if inner is None else inner


def inner_products(x: Tensor, grad_y: Tensor, slope: Tensor, geometry: Geometry) -> Tensor:
    """Σ_k (slope ∘ G) ``[N, O]`` without G: the outputs of the layer with `slope` as its weight, times their gradients.

    In fp32 (fp64): bf16 and fp16, whose products are sums that fp16 cannot hold, are widened a few samples at a time. On a GPU
    ``torch.backends.cudnn.allow_tf32`` decides about the factors' digits, as it does for the layer itself.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    slope = slope.to(wide)
    if x.dtype == grad_y.dtype == wide:
        return _inner_products(x, grad_y, slope, geometry)
    step = max(_CHUNK // max(math.prod(x.shape[1:]), math.prod(grad_y.shape[1:]), 1), 1)
    parts = zip(x.split(step), grad_y.split(step), strict=True)
    return torch.cat([_inner_products(some.to(wide), grads.to(wide), slope, geometry) for some, grads in parts])


def _inner_products(x: Tensor, grad_y: Tensor, slope: Tensor, geometry: Geometry) -> Tensor:
    groups, _, stride, padding, dilation = geometry
    y = torch.ops.aten.convolution(x, slope, None, stride, padding, dilation, False, [0, 0, 0], groups)
    return y.mul_(grad_y).sum((2, 3, 4))


def _fake(
    x: Tensor, grad_y: Tensor, mask: Tensor | None, slope: Tensor | None, numbers: list[int], bias: bool, form: str
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape[0], dtype=wide), x.new_empty(x.shape[0], 0 if slope is None else grad_y.shape[1], dtype=wide)


# x [N, C, D, H, W], grad_y [N, O, D', H', W'], any strides; mask and slope [O, C / groups, kd, kh, kw] in fp32 (fp64 for fp64 x). The mask
# multiplies each sample's gradient before it is squared, the slope is what it is multiplied with for `inner` [N, O], empty without.
grad_sq_norm = define_op(
    "grad_sq_norm(Tensor x, Tensor grad_y, Tensor? mask, Tensor? slope, int[] numbers, bool bias, str form) -> (Tensor, Tensor)",
    _forward,
    _fake,
)
