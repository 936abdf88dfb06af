"""The cases of `fastqat.fake_quantize_all` on a GPU: the weights of a ResNet-50 in one call, against one tensor of their total size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from . import fake_quant_all_cases
from .case import Case, Size
from .fake_quant_all_cases import Inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _on_device(setup: Callable[[Size], Inputs]) -> Callable[[Size], Inputs]:
    def there(size: Size) -> Inputs:
        inputs = setup(size)
        weights, scales, grads = ([t.to(DEVICE) for t in tensors] for tensors in (inputs.weights, inputs.scales, inputs.grads))
        return Inputs(weights, scales, grads, inputs.axis)

    return there


def _case(case: Case) -> Case:
    about = case.about.replace("53 weights", "on a GPU, 53 weights")
    return replace(case, name=f"gpu/{case.name}", about=about, setup=_on_device(case.setup), seconds=2.0, device="cuda", clock="stream")


CASES = tuple(map(_case, fake_quant_all_cases.CASES))
