"""The C++ kernels behind ``fastqat._C``: tiles stay in the cache, `csrc/cpu/grad_norm_*.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _backend
from .forms import FORMS, Form
from .geometry import Geometry


class Native:
    """All three forms for CPU tensors, bf16 and fp16 added in fp32."""

    FORMS: tuple[Form, ...] = FORMS

    refuses = staticmethod(_backend.refuses_float64)

    @classmethod
    def masked_forms(cls, mask: Tensor) -> tuple[Form, ...]:
        """All of them: the Gram forms take off what a mask of zeros and ones clears."""
        return cls.FORMS

    @staticmethod
    def direct(
        x: Tensor, grad_y: Tensor, mask: Tensor | None, slope: Tensor | None, geometry: Geometry, bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        sq_norm = x.new_empty(x.shape[0], dtype=torch.float32)
        inner = None if slope is None else x.new_empty(x.shape[0], grad_y.shape[1], dtype=torch.float32)
        torch.ops.fastqat_native.grad_sq_norm_direct.default(
            x, grad_y, _channels_last(mask), _channels_last(slope), sq_norm, inner, geometry.encode(), bias
        )
        return sq_norm, inner

    @staticmethod
    def gram(x: Tensor, grad_y: Tensor, mask: Tensor | None, geometry: Geometry, bias: bool, form: Form) -> Tensor:
        sq_norm = x.new_empty(x.shape[0], dtype=torch.float32)
        torch.ops.fastqat_native.grad_sq_norm_gram.default(
            x, grad_y, _channels_last(mask), sq_norm, geometry.encode(), bias, form == "shifted"
        )
        return sq_norm


class Cuda(Native):
    """The same operators on CUDA tensors, `csrc/cuda/grad_norm*`, where Triton is absent: no shifted form, masks by the direct one."""

    FORMS = ("direct", "gram")

    @classmethod
    def masked_forms(cls, mask: Tensor) -> tuple[Form, ...]:
        """The gradient itself is formed."""
        return ("direct",)


def _channels_last(factors: Tensor | None) -> Tensor | None:
    """``[O, C / groups, kd, kh, kw]`` as the kernels read it: ``[O, kd, kh, kw, C / groups]``, contiguous, fp32."""
    return None if factors is None else factors.movedim(1, -1).to(torch.float32).contiguous()
