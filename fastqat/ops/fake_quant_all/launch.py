"""The Triton backend for many tensors: allocates, tells the device of all tensors by one table, launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _backend
from .._launch import on_device
from .._layout import by_storage, dense, from_storage, like, quant_view
from ..fake_quant.launch import Triton
from ..fake_quant.reference import Grid
from .reference import Gradients, Needs
from .table import COLUMNS, LANES, MANY, ROWS, Part, Table

RUN = 8  # terms of a sum that are added in fp32

_ONE = Triton()
_captured: list[Tensor] = []  # tables in host memory that CUDA graphs read again at every replay: never freed


def stored_scales(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point as kernels read them: fp32 in the storage order of x."""
    zero_point = None if grid.zero_point is None else by_storage(x, grid.zero_point.to(torch.float32))
    return by_storage(x, grid.scale), zero_point


class TritonAll:
    """One launch forward, two backward, for each dtype and semantics among the tensors.

    Tensors in which neighbours have different scales over and over (per channel in channels-last order) go one by one to the kernels for
    one tensor, which read them by columns.
    """

    refuses = staticmethod(_backend.refuses_in_triton)

    @staticmethod
    def forward(xs: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        parts = [_part(x, grid) for x, grid in zip(xs, grids, strict=True)]
        _launch([part for part in parts if not part.alone], backward=False)
        return [_ONE.forward(part.x, part.grid) if part.alone else part.out for part in parts]

    @staticmethod
    def backward(
        grad_ys: Sequence[Tensor], xs: Sequence[Tensor], grids: Sequence[Grid], grad_factors: Sequence[float], needs: Needs
    ) -> list[Gradients]:
        parts = [_part(*each) for each in zip(xs, grids, grad_ys, needs, grad_factors, strict=True)]
        _launch([part for part in parts if not part.alone], backward=True)
        return [_gradients(part, need) for part, need in zip(parts, needs, strict=True)]


def _part(x: Tensor, grid: Grid, grad_y: Tensor | None = None, needs: Sequence[bool] = (), factor: float = 1.0) -> Part:
    """Everything for one tensor; what its kernels write is allocated."""
    x = dense(x)
    view = quant_view(x, grid.axis, grid.group_size)
    grad = None if grad_y is None else like(x, grad_y)
    out = torch.empty_like(x) if grad is None or grad is grad_y else grad
    sums = [torch.empty(grid.scale.numel(), dtype=torch.float32, device=x.device) if needed else None for needed in needs]
    return Part(x, view, grid, *stored_scales(x, grid), out, grad, tuple(sums), factor)


def _gradients(part: Part, needs: Sequence[bool]) -> Gradients:
    """What the backward pass found for a tensor."""
    if part.alone:
        assert part.grad_y is not None
        return _ONE.backward(part.grad_y, part.x, part.grid, part.factor, *needs)
    grad_scale, grad_zero_point = (None if each is None else from_storage(part.x, each, part.grid.scale.shape) for each in part.sums)
    return part.out, grad_scale, grad_zero_point


def _on_device(host: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, made in stream order: nothing waits."""
    if device.type == "cpu":  # Triton's interpreter
        return host
    host = host.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _captured.append(host)
    return host.to(device, non_blocking=True)


def _launch(parts: Sequence[Part], backward: bool) -> None:
    """Run the kernels for the parts of each kind."""
    for kind in dict.fromkeys(part.kind for part in parts):
        _launch_kind([part for part in parts if part.kind == kind], *kind, backward)


def _launch_kind(parts: list[Part], dtype: torch.dtype, reciprocal: bool, backward: bool) -> None:
    from ..._triton import NO_FUSION, tl  # here, since importing triton takes as long as all of fastqat
    from . import kernels

    table, device = Table.of(parts), parts[0].x.device
    with on_device(device):
        rows = _on_device(table.rows(), device)
        options = {"TENSORS": rows.shape[1], **NO_FUSION}
        tiles = {
            "TYPE": getattr(tl, str(dtype).removeprefix("torch.")),
            "RECIPROCAL": reciprocal,
            "ROWS": ROWS,
            "COLUMNS": COLUMNS,
            **options,
        }
        if table.programs and not backward:
            kernels.fake_quant_all_kernel[(table.programs,)](rows, **tiles)
        if not backward:
            return
        partials = torch.empty(table.partials, dtype=torch.float64, device=device)
        if table.programs:
            kernels.fake_quant_all_backward_kernel[(table.programs,)](rows, partials, RUN=RUN, **tiles)
        if table.finish_programs:
            kernels.fake_quant_all_finish_kernel[(table.finish_programs,)](rows, partials, MANY=MANY, LANES=LANES, **options)
