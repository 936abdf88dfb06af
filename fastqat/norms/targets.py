"""Which parameters of a model count, and how the gradient of each is had per sample; what cannot be is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from .._errors import InputError
from ..nn.layer import QuantLayer
from ..quantizers import Quantizer
from .rules import Names, Rule, find_rule
from .rules.registry import inherits, rule_of

How = Literal["rule", "quantized", "attention", "direct", "func"]
_ATTENTION = {f"{letter}_proj_weight" for letter in "qkv"} | {
    *("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias", "bias_k", "bias_v")
}
NO_RULE = 'register a rule for it (fastqat.norms.register_rule), freeze it beside parameters that train, or pass unknown="func"'


class Target(NamedTuple):
    """A module whose parameters count.

    how: by its rule; inside the backward of a quantized layer; by `attention`; for modules that torch does not define, by following the
    parameters themselves (`direct`); by torch.func.
    parameters: those that count, by their names in the module. keys: the ids of those that only the module itself may read.
    dim: dimension of the samples in its input and output, where a rule measures it.
    """

    name: str
    module: nn.Module
    how: How
    parameters: dict[str, nn.Parameter]
    rule: Rule | None
    keys: frozenset[int] = frozenset()
    dim: int = 0

    @property
    def names(self) -> Names:
        """The names of its parameters."""
        return Names(self.parameters)

    @property
    def label(self) -> str:
        """For messages: 'layer1.conv (Conv2d)'."""
        return f"{self.name or 'the model'} ({type(self.module).__name__})"


class Targets(NamedTuple):
    """All modules that are watched.

    owners: id of a parameter → the names of the modules that own it and count it, in the order of the model.
    scales: name → parameter, of the quantizers' parameters that count, in the order of `named_parameters`.
    """

    targets: list[Target]
    owners: dict[int, list[str]]
    scales: dict[str, nn.Parameter]


def find_targets(model: nn.Module, func: bool) -> Targets:
    """Go through `model`; `func`: leave what has no rule to torch.func.

    Raises:
        InputError: the model or a layer of it cannot be measured.
    """
    _check_model(model)
    parameters = dict(model.named_parameters())
    trained = {id(p) for p in parameters.values() if p.requires_grad}
    counted = trained or {id(p) for p in parameters.values()}
    targets: list[Target] = []
    owners: dict[int, list[str]] = {}
    for target in _walk(model, counted, func):
        targets.append(target)
        for parameter in target.parameters.values():
            owners.setdefault(id(parameter), []).append(target.name)
    _check_shared(targets, owners)
    quantizers = {id(p) for module in model.modules() if isinstance(module, Quantizer) for p in module.parameters(recurse=False)}
    scales = {name: p for name, p in parameters.items() if id(p) in counted & quantizers}
    return Targets(targets, owners, scales)


def _walk(model: nn.Module, counted: set[int], func: bool) -> Iterator[Target]:
    inside: set[nn.Module] = set()  # parts of a layer that is measured as a whole
    turned = _turned(model)
    for name, module in model.named_modules():
        if module in inside:
            continue
        check_statistics(name, module)
        rule = find_rule(module)
        reason = rule.refuses(module) if rule else None
        if reason:
            raise InputError(f"{name or 'the model'} ({type(module).__name__}): {reason}")
        whole = _measured_with(module)
        inside.update(part for prefix in whole for part in module.get_submodule(prefix).modules())
        own = {key: p for key, p in module.named_parameters() if id(p) in counted and _belongs(key, whole)}
        if own:
            target = _target(name, module, own, rule, func)
            if module in turned and target.how != "attention":
                target = _with_samples_in_1(target)
            yield target if target.how == "direct" else target._replace(keys=frozenset(map(id, own.values())))


def _turned(model: nn.Module) -> set[nn.Module]:
    """The modules inside of torch's transformer layers with batch_first=False, which read ``[T, N, C]``."""
    found: set[nn.Module] = set()
    for kind in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder, nn.TransformerDecoder):
        for module in model.modules():
            if not isinstance(module, kind) or not inherits(module, kind, "forward"):
                continue
            layer: Any = module.layers[0] if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder) else module
            norm = [module.norm] if layer is not module else [module]
            if not getattr(getattr(layer, "self_attn", None), "batch_first", True):
                found.update(part for whole in norm if isinstance(whole, nn.Module) for part in whole.modules())
    return found


def _with_samples_in_1(target: Target) -> Target:
    if target.how != "rule":
        raise InputError(f"{target.label} is inside of a transformer layer with batch_first=False; build that with batch_first=True")
    return target._replace(dim=1)


def _measured_with(module: nn.Module) -> list[str]:
    """Names of the submodules that are measured together with `module`, not by themselves."""
    if isinstance(module, QuantLayer) or is_attention(module):
        return [name for name, _ in module.named_children()]
    return ["parametrizations"] if parametrize.is_parametrized(module) else []


def _belongs(key: str, whole: list[str]) -> bool:
    """Whether a parameter is the module's own, or in one of the submodules `whole`."""
    return "." not in key or key.partition(".")[0] in whole


def _target(name: str, module: nn.Module, own: dict[str, nn.Parameter], rule: Rule | None, func: bool) -> Target:
    target, names = Target(name, module, "rule", own, rule), Names(own)
    if isinstance(module, QuantLayer) and not parametrize.is_parametrized(module):
        _check_quantized(target)
        return target._replace(how="quantized")
    if is_attention(module) and names <= _ATTENTION:
        return target._replace(how="attention")
    if rule is not None and (rule.parameters is None or names <= rule.parameters):
        return target
    parametrized = any("." in name for name in names)  # their hosts' classes are made by torch
    users = not type(module).__module__.startswith("torch.") or "forward" in vars(module)
    if not parametrized and (users or isinstance(module, nn.ParameterList | nn.ParameterDict)):
        return target._replace(how="direct", rule=None)
    if not func:
        raise InputError(f"{target.label} has no rule for the per-sample gradients of {', '.join(sorted(names))}: {NO_RULE}")
    return target._replace(how="func", rule=None)


def is_attention(module: nn.Module) -> bool:
    """Whether the forward pass of `module` is that of `torch.nn.MultiheadAttention`."""
    return isinstance(module, nn.MultiheadAttention) and inherits(module, nn.MultiheadAttention, "forward")


def check_statistics(name: str, module: nn.Module) -> None:
    """Refuse a batch norm that mixes the samples, whether or not it has parameters, or a forward of its own."""
    rule = rule_of(nn.BatchNorm2d) if isinstance(module, _BatchNorm) else None
    reason = rule.refuses(module) if rule else None
    if reason:
        raise InputError(f"{name or 'the model'} ({type(module).__name__}): {reason}")


def _check_quantized(target: Target) -> None:
    """A quantized layer is measured in the backward pass of its own operation, which must be what its forward runs."""
    module = target.module
    for method in ("forward", "operands", "wanted", "padded"):
        base = next(base for base in type(module).__mro__ if method in vars(base))
        if not base.__module__.startswith("fastqat.nn.") or not inherits(module, base, method):
            raise InputError(
                f"{target.label} has a {method} of its own in place of fastqat's, whose backward pass measures the layer; put what it does "
                "into a module around the layer, or into a forward hook"
            )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {type(model).__name__}; accepted: a torch.nn.Module")
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, nn.DataParallel):
            raise InputError(f"{where} copies the model in every forward; pass the module inside it, or use DistributedDataParallel")
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"{where} is TorchScript, whose layers cannot be watched; pass the model before it was scripted")
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(f"{where} is compiled, and its layers cannot be watched; pass the model before torch.compile")
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "device_mesh"):
            raise InputError(f"{name} is a DTensor, of which each process holds a part; accepted: whole parameters, as under DDP")
    if not any(True for _ in model.parameters()):
        raise InputError("the model has no parameters, so there is no gradient to measure")


def _check_shared(targets: list[Target], owners: dict[int, list[str]]) -> None:
    for target in targets:
        if target.how != "quantized":
            continue
        for name, parameter in target.parameters.items():
            sharing = owners[id(parameter)]
            if len(sharing) > 1:
                raise InputError(
                    f"{name} of {target.label} is shared by {', '.join(sharing)}; a quantized layer's parameters must be its own. Give "
                    "each layer its copy, or leave these layers float"
                )
