"""Quantized layers of every kind, what they deliver, and the same from passes of one sample at a time in fp64."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

import fastqat as fq
from fastqat.nn.layer import QuantLayer
from fastqat.ops.quant_layer.norms import SampleNorms
from fastqat.quantizers import Quantizer

Specs = dict[str, Any]
SAMPLES = 4

LAYERS: dict[str, tuple[type[QuantLayer], dict[str, Any], tuple[int, ...]]] = {
    "conv1d": (fq.nn.QuantConv1d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}, (4, 9)),
    "conv2d": (fq.nn.QuantConv2d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": (1, 0)}, (4, 7, 8)),
    "conv3d": (fq.nn.QuantConv3d, {"in_channels": 2, "out_channels": 3, "kernel_size": (1, 2, 3), "dilation": (1, 2, 1)}, (2, 3, 5, 6)),
    "pointwise": (fq.nn.QuantConv2d, {"in_channels": 6, "out_channels": 4, "kernel_size": 1}, (6, 3, 5)),
    "grouped": (fq.nn.QuantConv2d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "padding": "same"}, (4, 6, 5)),
    "depthwise": (fq.nn.QuantConv2d, {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6, "padding": 1}, (6, 6, 5)),
    "reflected": (
        fq.nn.QuantConv2d,
        {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
        (2, 5, 6),
    ),
    "linear": (fq.nn.QuantLinear, {"in_features": 8, "out_features": 5}, (8,)),
    "tokens": (fq.nn.QuantLinear, {"in_features": 8, "out_features": 5}, (2, 3, 8)),
}
WEIGHTS: dict[str, Specs | None] = {
    "float": None,
    "lsq": {"bits": 4},
    "lsq channel": {"bits": 3, "granularity": "channel", "semantics": "reciprocal"},
    "lsq group": {"bits": 2, "granularity": ("group", 0), "grad_factor": "per_scale"},
    "lsq+": {"bits": 4, "quantizer": "lsq_plus", "symmetric": False, "granularity": "channel"},
    "lsq+ group": {"bits": 5, "quantizer": "lsq_plus", "symmetric": False, "signed": False, "granularity": ("group", 0)},
    "minmax": {"bits": 8, "quantizer": "minmax", "granularity": "channel"},
    "dorefa": {"bits": 2, "quantizer": "dorefa"},
    "pact": {"bits": 4, "quantizer": "pact", "granularity": "channel"},
    "pact group": {"bits": 3, "quantizer": "pact", "granularity": ("group", 0), "grad_factor": "per_scale"},
}
ACTIVATIONS: dict[str, Specs | None] = {
    "float": None,
    "lsq": {"bits": 4, "signed": "auto"},
    "lsq unsigned": {"bits": 2, "signed": False, "grad_factor": "per_scale"},
    "lsq channel": {"bits": 6, "granularity": "channel", "semantics": "reciprocal"},
    "lsq+": {"bits": 4, "quantizer": "lsq_plus", "symmetric": False, "signed": False},
    "lsq+ channel": {"bits": 3, "quantizer": "lsq_plus", "symmetric": False, "granularity": "channel"},
    "minmax": {"bits": 8, "quantizer": "minmax", "symmetric": False},
    "pact": {"bits": 4, "quantizer": "pact", "signed": False},
    "pact channel": {"bits": 3, "quantizer": "pact", "granularity": "channel", "grad_factor": "per_scale"},
}


def build(kind: str, weight: Specs | None, activation: Specs | None, bias: bool = True) -> tuple[QuantLayer, Tensor]:
    """A calibrated layer in eval mode, its values clipped here and there, and an input."""
    cls, options, shape = LAYERS[kind]
    torch.manual_seed(0)
    inputs = cls(**options).weight.shape[1]
    if weight is not None and weight.get("granularity") == ("group", 0):
        weight = {**weight, "granularity": ("group", 2 if inputs % 2 == 0 else 1)}
    specs = {"weight": weight and fq.QuantSpec(**weight), "activation": activation and fq.QuantSpec(**activation)}
    layer = cls(**options, bias=bias, **specs)
    x = torch.randn(SAMPLES, *shape) + 0.3
    fq.calibrate(layer, [x])
    with torch.no_grad():
        for name, values in layer.state_dict(keep_vars=True).items():
            if name.endswith(("scale", "alpha", "offset")):
                values.mul_(0.7)  # clips, and not where rounding decides about the largest value
    return layer.eval(), x


class Found:
    """What a layer delivered."""

    def __init__(self, layer: QuantLayer, names: frozenset[str] | None = None):
        names = frozenset(name for name, _ in layer.named_parameters()) if names is None else names
        self.calls = 0
        layer.sample_norms = SampleNorms(names, torch.empty(0, requires_grad=True), self._deliver)

    def _deliver(self, sq_norm: Tensor, grads: dict[str, Tensor]) -> None:
        self.sq_norm, self.grads = sq_norm, grads
        self.calls += 1


def oracle(layer: QuantLayer, x: Tensor, grad_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared norms and gradients of the quantizers' parameters, one sample at a time, in fp64."""
    with fq.use_backend("reference"):
        return one_at_a_time(copy.deepcopy(layer).double(), x.double(), grad_y.double())


def one_at_a_time(layer: QuantLayer, x: Tensor, grad_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The same in the dtypes given, of the gradients that a plain pass leaves in `layer`; only added up in fp64."""
    layer.requires_grad_()
    norms, grads = [], []
    for n in range(len(x)):
        layer.zero_grad()
        layer(x[n : n + 1].requires_grad_()).backward(grad_y[n : n + 1])
        found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in layer.named_parameters()}
        norms.append(sum(found.pop(name).double().square().sum() for name in ("weight", "bias") if name in found))
        grads.append({name: grad.flatten().double() * share(layer, name, len(x)) for name, grad in found.items()})
    return torch.stack(norms), {name: torch.stack([grad[name] for grad in grads]) for name in grads[0]}


def share(layer: QuantLayer, name: str, samples: int) -> float:
    """ "per_scale" counts the elements of the whole batch."""
    quantizer = layer.get_submodule(name.rpartition(".")[0])
    assert isinstance(quantizer, Quantizer)
    batched = quantizer.role == "activation" and quantizer.spec.grad_factor == "per_scale"
    return 1 / math.sqrt(samples) if batched else 1.0


def assert_equals_oracle(found: Found, layer: QuantLayer, x: Tensor, grad_y: Tensor, rtol: float = 1e-5) -> None:
    sq_norm, grads = oracle(layer, x, grad_y)
    assert found.calls == 1
    torch.testing.assert_close(found.sq_norm.double(), sq_norm, rtol=rtol, atol=0)
    assert set(found.grads) == set(grads)
    for name, want in grads.items():
        got = found.grads[name]
        assert got.dtype == torch.float32 and not got.requires_grad
        torch.testing.assert_close(
            got.double(), want, rtol=rtol, atol=rtol * float(want.abs().max()), msg=lambda m, name=name: f"{name}: {m}"
        )


def delivered(layer: QuantLayer, x: Tensor, grad_y: Tensor | None = None, names: frozenset[str] | None = None) -> tuple[Found, Tensor]:
    """What one pass with norms delivers, and the gradient that it started from."""
    found = Found(layer, names)
    y = layer(x)
    grad_y = torch.randn_like(y) if grad_y is None else grad_y
    y.backward(grad_y)
    layer.sample_norms = None
    return found, grad_y
