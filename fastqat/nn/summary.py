"""summary(): what is quantized, how, and what was left alone and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..quantizers import Quantizer
from .convert import LAYERS, REASON, cannot_swap
from .fake_quantize import FakeQuantize
from .layer import QuantLayer
from .param_groups import NORMS


@dataclass(frozen=True)
class SummaryRow:
    """One layer: `weight` and `activation` describe its quantizers (``"float"`` where there is none), `note` why it was left alone."""

    name: str
    type: str
    weight: str
    activation: str
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """The rows of `summary`, in module order; prints as a table."""

    rows: tuple[SummaryRow, ...]

    def __iter__(self) -> Iterator[SummaryRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        titles = ("layer", "type", "weight", "activation", "left alone because")
        table = [titles, *((row.name, row.type, row.weight, row.activation, row.note) for row in self.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(titles))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table)

    __repr__ = __str__


def summary(model: nn.Module) -> Summary:
    """Every layer with parameters: bits, granularity, scale and range of its quantizers, or why it was left alone.

    Reads the scales (waits for the device). A range is that of the real values the codes can stand for.

    Example:
        >>> import torch, fastqat as fq
        >>> nn = torch.nn
        >>> net = fq.quantize(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), "w2a8", skip="first")
        >>> for row in fq.summary(net):
        ...     print(row.name, row.type, row.activation, "|", row.note)
        0 Linear float | skip='first'
        1 BatchNorm1d float | norms stay float
        2 QuantLinear 8 bit lsq per tensor, not calibrated |
    """
    return Summary(tuple(_row(name or "(model)", module) for name, module in model.named_modules() if _has_row(module)))


def _has_row(module: nn.Module) -> bool:
    if isinstance(module, Quantizer):
        return False
    return isinstance(module, (QuantLayer, FakeQuantize)) or next(module.parameters(recurse=False), None) is not None


def _row(name: str, module: nn.Module) -> SummaryRow:
    kind = type(module).__name__
    if isinstance(module, FakeQuantize):
        return SummaryRow(name, kind, "-", _describe(module.quantizer))
    if isinstance(module, QuantLayer):
        return SummaryRow(name, kind, _describe(module.weight_quantizer), _describe(module.activation_quantizer))
    return SummaryRow(name, kind, "float", "float", _reason(module))


def _reason(module: nn.Module) -> str:
    if isinstance(module, tuple(LAYERS)):
        return getattr(module, REASON, None) or cannot_swap(module) or "not converted: call fastqat.quantize"
    return "norms stay float" if isinstance(module, NORMS) else "no quantized form of this type"


def _describe(quantizer: Quantizer | None) -> str:
    if quantizer is None:
        return "float"
    spec = quantizer.spec
    if not quantizer.calibrated:
        return f"{spec.bits} bit {spec.quantizer} per {spec.per}, not calibrated"
    sign = "signed" if quantizer.signed else "unsigned"
    scale = quantizer.scale.detach().float()
    zero = 0 if quantizer.zero_point is None else quantizer.zero_point
    qmin, qmax = quantizer.qrange()
    low, high = float(((qmin - zero) * scale).min()), float(((qmax - zero) * scale).max())
    steps = f"{float(scale.min()):.3g}" if scale.numel() == 1 else f"{float(scale.min()):.3g}..{float(scale.max()):.3g}"
    return f"{spec.bits} bit {sign} {spec.quantizer} per {spec.per}, scale {steps}, range [{low:.3g}, {high:.3g}]"
