"""Which layers of two models are compared: by kind, by patterns of their names, or in pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fastqat._errors import InputError
from fastqat.selection.forwards import unwrapped

# BasicBlock1d, ResBottleneckBlock, InvertedResidual, FusedMBConv, CNBlock, EncoderBlock, SwinTransformerBlockV2, TransformerEncoderLayer
_BLOCK = re.compile(r"(Block|Bottleneck|Residual|MBConv|(En|De)coderLayer)([123][dD]|V\d+)?$")
_SHOWN = 12


class Layer(NamedTuple):
    """One layer whose outputs are compared.

    `name` is that in the student and `teacher_name` that in the teacher; `axis` is where the channels of its output are, 1 or -1.
    """

    name: str
    teacher_name: str
    student: nn.Module
    teacher: nn.Module
    axis: int


def find_layers(student: nn.Module, teacher: nn.Module, layers: str | Iterable[str] | Mapping[str, str]) -> list[Layer]:
    """The layers that `layers` names, in the order of the student's modules; see `CascadedCorrection` for what it may be.

    Raises:
        InputError: it names nothing, or other layers of the teacher than of the student.
    """
    student, teacher = inner(student), inner(teacher)
    pairs = _pairs(student, teacher, layers)
    order = {name: place for place, (name, _) in enumerate(student.named_modules(remove_duplicate=False))}
    for model, whose, name in [
        (m, w, n) for pair in pairs for m, w, n in zip((student, teacher), ("student", "teacher"), pair, strict=True)
    ]:
        _must_have(model, whose, name)
    found = [_layer(name, other, student.get_submodule(name), teacher.get_submodule(other)) for name, other in pairs]
    return sorted(found, key=lambda layer: order[layer.name])


def _layer(name: str, other: str, student: nn.Module, teacher: nn.Module) -> Layer:
    if any(isinstance(module, nn.MultiheadAttention) and not module.batch_first for module in student.modules()):
        raise InputError(f"layer {name!r} has its samples at axis 1 (MultiheadAttention without batch_first=True); build it with it")
    return Layer(name, other, student, teacher, channel_axis(student))


def inner(model: nn.Module) -> nn.Module:
    """The module inside of `DistributedDataParallel` and `torch.compile`."""
    model = unwrapped(model)
    return unwrapped(getattr(model, "_orig_mod", model))


def channel_axis(layer: nn.Module) -> int:
    """Where the channels of the output of `layer` are: 1 as in ``[N, C, H, W]``, or -1 as in the tokens ``[N, T, C]`` of a transformer.

    Last where it has linear layers or layer norms, but no convolution and no norm over the channels at axis 1: these say how their input
    is laid out.
    """
    modules = list(layer.modules())
    if any(isinstance(module, (_ConvNd, _NormBase, nn.GroupNorm)) for module in modules):
        return 1
    return -1 if any(isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm)) for module in modules) else 1


def blocks_of(model: nn.Module) -> list[str]:
    """Names of the residual blocks of `model`, the outermost of nested ones; see `CascadedCorrection` for the rule."""
    named = [name for name, module in model.named_modules() if name and _BLOCK.search(type(module).__name__)]
    return _outermost(named or _repeated(model))


def _repeated(model: nn.Module) -> list[str]:
    """Names of the modules of which a list holds several of one class, with layers inside that hold weights."""
    names = []
    for path, parent in model.named_modules():
        if isinstance(parent, (nn.Sequential, nn.ModuleList)):
            kinds = [type(child) for child in parent]
            for name, child in parent.named_children():
                weighs = any(isinstance(module, (_ConvNd, nn.Linear)) for module in child.modules() if module is not child)
                if weighs and kinds.count(type(child)) > 1:
                    names.append(f"{path}.{name}".lstrip("."))
    return names


def _outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{outer}.") for outer in names)]


def _convs_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _ConvNd)]


def _pairs(student: nn.Module, teacher: nn.Module, layers: str | Iterable[str] | Mapping[str, str]) -> list[tuple[str, str]]:
    if isinstance(layers, str) and layers in ("blocks", "convs"):
        return _of_kind(layers, *(_FINDERS[layers](model) for model in (student, teacher)))
    if isinstance(layers, Mapping):
        entries = [f"{name}={other}" for name, other in layers.items()]
    else:
        entries = [part.strip() for part in layers.split(",")] if isinstance(layers, str) else _listed(layers)
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise InputError(f"layers must be 'blocks', 'convs', patterns of module names, or pairs of names; got {layers!r}")
    pairs: dict[str, str] = {}
    for entry in entries:
        name, _, other = entry.partition("=")
        pairs.update({name: other} if other else {match: match for match in _matching(student, name)})
    return list(pairs.items())


def _listed(layers: Any) -> list[Any]:
    return list(layers) if isinstance(layers, Iterable) else []


_FINDERS = {"blocks": blocks_of, "convs": _convs_of}


def _of_kind(kind: str, mine: list[str], others: list[str]) -> list[tuple[str, str]]:
    if not mine:
        raise InputError(f"no {kind} found in the student; name its layers instead, such as layers='layer1.*,head'")
    if mine != others:
        alone = next((f"{name} of the student" for name in mine if name not in others), None)
        alone = alone or next((f"{name} of the teacher" for name in others if name not in mine), "their order")
        raise InputError(
            f"the {kind} of student ({len(mine)}) and teacher ({len(others)}) differ, first in {alone}; a teacher of another architecture "
            "needs pairs STUDENT=TEACHER of layers whose outputs have one shape, such as layers='layer1.0=layer1.4,layer2.0=layer2.4'"
        )
    return [(name, name) for name in mine]


def _matching(model: nn.Module, pattern: str) -> list[str]:
    """Module names of as many parts as `pattern`, each part matching."""
    parts = pattern.split(".")
    found = [
        name
        for name, _ in model.named_modules()
        if name and len(own := name.split(".")) == len(parts) and all(map(fnmatchcase, own, parts))
    ]
    if not found:
        raise InputError(f"no layer of the student is called {pattern!r}; {_existing(model)}")
    return found


def _must_have(model: nn.Module, whose: str, name: str) -> None:
    try:
        model.get_submodule(name)
    except AttributeError:
        pairs = "; or give pairs STUDENT=TEACHER, such as layers='layer1.0=layer1.4'" if whose == "teacher" else ""
        raise InputError(f"the {whose} has no layer {name!r}; {_existing(model)}{pairs}") from None


def _existing(model: nn.Module) -> str:
    """What could have been named: the blocks, or else all modules but the innermost of long lists."""
    names = blocks_of(model) or [name for name, _ in model.named_modules() if name]
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"it has {', '.join(names[:_SHOWN])}{more}"
