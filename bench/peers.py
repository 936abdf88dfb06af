"""LSQ by other means: each a contender that computes x_hat and the gradients for x and scale with what another package offers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastqat.testing import eager_lsq

from .case import Contender, Work, needs_compiler, needs_package, never
from .fake_quant_work import QMAX, QMIN, Inputs, trained


def _learnable(inputs: Inputs, x: Tensor, scale: Tensor) -> Tensor:
    if inputs.axis is None:
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, inputs.zero_point, QMIN, QMAX, inputs.grad_factor)
    return torch._fake_quantize_learnable_per_channel_affine(x, scale, inputs.zero_point, inputs.axis, QMIN, QMAX, inputs.grad_factor)


def _eager(inputs: Inputs, x: Tensor, scale: Tensor) -> Tensor:
    return eager_lsq(x, scale, QMIN, QMAX, inputs.grad_factor)


def _compiled(inputs: Inputs) -> Work:
    torch.compiler.reset()
    compiled = torch.compile(eager_lsq, fullgraph=True, dynamic=False)
    return trained(lambda own, x, scale: compiled(x, scale, QMIN, QMAX, own.grad_factor), broadcast=True)(inputs)


def _brevitas(inputs: Inputs) -> Work:
    from brevitas.core.quant import IntQuant

    quantizer = IntQuant(narrow_range=False, signed=True, input_view_impl=torch.nn.Identity())
    zero, bits = torch.tensor(0.0), torch.tensor(4.0)
    return trained(lambda own, x, scale: quantizer(scale, zero, bits, x), broadcast=True)(inputs)


def _torchao(inputs: Inputs) -> Work:
    from torchao.quantization.quant_primitives import _fake_quantize_affine

    shared = 1 if inputs.group_size is None else inputs.group_size
    block = tuple(shared if d == inputs.axis else n if inputs.group_size is None else 1 for d, n in enumerate(inputs.x.shape))
    zero = inputs.zero_point
    return trained(lambda own, x, scale: _fake_quantize_affine(x, block, scale, zero, torch.int8, QMIN, QMAX))(inputs)


def _nncf(inputs: Inputs) -> Work:
    """Its kernels are compiled when they are first called; its scale is the largest value that can be represented."""
    import logging

    import nncf
    from nncf.torch.quantization.quantize_functions import symmetric_quantize

    nncf.set_log_level(logging.WARNING)
    levels = QMAX - QMIN + 1
    return trained(lambda own, x, scale: symmetric_quantize(x, levels, QMIN, QMAX, scale * QMAX, 0.0), broadcast=True)(inputs)


def _nncf_reason() -> str | None:
    return needs_package("nncf")() or needs_package("ninja")() or needs_compiler()


# torch tests the range on the rounded value, so its gradients differ by design in half a step at both ends.
LEARNABLE = Contender("torch learnable", trained(_learnable), agrees=("x_hat",))
LEARNABLE_FP32 = Contender("torch learnable", trained(_learnable), reason=never("its backward takes float32 only"), agrees=())
LEARNABLE_GROUPS = Contender("torch learnable", trained(_learnable), reason=never("it has no groups"), agrees=())
EAGER = Contender("eager LSQ", trained(_eager, broadcast=True))
COMPILED = Contender("compiled LSQ", _compiled, reason=needs_compiler)
# All three have other gradients: brevitas and torchao clamp after rounding, nncf learns the range, and none has a gradient factor.
BREVITAS = Contender("brevitas", _brevitas, reason=needs_package("brevitas"), agrees=("x_hat",))
TORCHAO = Contender("torchao", _torchao, reason=needs_package("torchao"), agrees=("x_hat",))
NNCF = Contender("nncf", _nncf, reason=_nncf_reason, agrees=("x_hat",))
# All of its arithmetic is in the storage type, and so rounds other values.
NNCF_BF16 = Contender("nncf", _nncf, reason=_nncf_reason, agrees=())
