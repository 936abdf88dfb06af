"""What the Triton kernels are told of many tensors: one column of a table for each, and how many programs and partials all of them need."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .._layout import View
from ..fake_quant.reference import Grid

ROWS, COLUMNS = 64, 32  # of a tile; its 2048 elements are 16 per thread of 4 warps
TILE = ROWS * COLUMNS
LONG = 8 * TILE  # rows from this length on are cut into whole tiles: at most an eighth of the lanes idle
LANES, MANY = 1024, 128  # of a program of the second stage: partials read at once, and of one scale where it has so many
VECTOR_BYTES = 16
BEYOND = 1 << 62
INT32_MAX = 2**31 - 1


class Column(NamedTuple):
    """What the kernels are told of one tensor, in the order of their constants."""

    first: int
    first_finish: int
    rows: int
    inner: int
    pieces: int
    aligned: int
    long: int
    channels: int
    outer: int
    qmin: int
    qmax: int
    x: int
    out: int
    grad_y: int
    scale: int
    zero_point: int
    grad_scale: int
    grad_zero_point: int
    scale_partials: int
    zero_point_partials: int
    scales: int
    run: int
    factor: int


class Cut(NamedTuple):
    """How a view is cut into the tiles of programs; the module of the kernels explains it."""

    rows: int
    pieces: int
    long: bool
    tiles: int
    run: int  # partials of a row
    finishes: int  # programs of the second stage

    @property
    def partials(self) -> int:
        return self.rows * self.run


@functools.lru_cache(maxsize=4096)
def cut(view: View) -> Cut:
    """The cut of `view`; it depends on nothing else, so that the sums have the same bits everywhere.

    Example:
        >>> cut(View(1, 1, 64, 576))  # a weight [64, 64, 3, 3] per channel
        Cut(rows=64, pieces=18, long=False, tiles=18, run=18, finishes=1)
        >>> cut(View(1, 1, 1, 36864))  # the same per tensor
        Cut(rows=1, pieces=1152, long=True, tiles=18, run=18, finishes=1)
    """
    rows = view.blocks * view.outer * view.channels
    pieces = -(-view.inner // COLUMNS)
    long = rows == 1 or view.inner >= LONG
    pieces = -(-pieces // ROWS) * ROWS if long else pieces
    run = pieces // ROWS if long else pieces
    finishes = -(-view.blocks * view.channels // (LANES // MANY if view.outer * run >= MANY else MANY))
    return Cut(rows, pieces, long, -(-rows * pieces // ROWS), run, finishes)


class Part(NamedTuple):
    """One tensor of a launch with what is read and written for it; tensors that a pass does not have are None."""

    x: Tensor
    view: View
    grid: Grid
    scale: Tensor
    zero_point: Tensor | None
    out: Tensor
    grad_y: Tensor | None
    sums: tuple[Tensor | None, ...]  # of scale and zero point, in the order of the view; none in a forward pass
    factor: float

    @property
    def kind(self) -> tuple[torch.dtype, bool]:
        """What one launch has in common: dtype, and whether the semantics are ``"reciprocal"``."""
        return self.x.dtype, self.grid.semantics == "reciprocal"

    @property
    def alone(self) -> bool:
        """Whether the tensor is left to the kernels for one tensor."""
        short, tiles = self.view.inner < COLUMNS // 4, cut(self.view)
        return (short and self.view.outer > 1) or max(tiles.rows, tiles.pieces) > INT32_MAX - TILE

    def column(self, first: int, first_finish: int, partials: list[int]) -> Column:
        """The column of this tensor; `partials`: the first of either sum, −1 where it is not wanted."""
        wide = [self.x, self.out] if self.grad_y is None else [self.x, self.out, self.grad_y]
        view, tiles = self.view, cut(self.view)
        aligned = (view.inner % COLUMNS == 0 or tiles.rows == 1) and all(t.data_ptr() % VECTOR_BYTES == 0 for t in wide)
        addresses = (self.x, self.out, self.grad_y, self.scale, self.zero_point, *(self.sums or (None, None)))
        return Column._make(
            (
                first,
                first_finish,
                tiles.rows,
                view.inner,
                tiles.pieces,
                int(aligned),
                int(tiles.long),
                view.channels,
                view.outer,
                self.grid.qmin,
                self.grid.qmax,
                *(0 if t is None else t.data_ptr() for t in addresses),
                *partials,
                view.blocks * view.channels,
                tiles.run,
                struct.unpack("q", struct.pack("d", self.factor))[0],
            )
        )


class Table(NamedTuple):
    """The columns of all tensors of a launch, and how many programs and partials they need."""

    columns: list[Column]
    programs: int
    finish_programs: int
    partials: int

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Table:
        """The table for `parts`."""
        columns, programs, finish_programs, partials = [], 0, 0, 0
        for part in parts:
            tiles, firsts = cut(part.view), [-1, -1]
            for which, wanted in enumerate(part.sums):
                if wanted is not None:
                    firsts[which], partials = partials, partials + tiles.partials
            columns.append(part.column(programs, finish_programs, firsts))
            programs += tiles.tiles
            finish_programs += tiles.finishes if max(firsts) >= 0 else 0
        return cls(columns, programs, finish_programs, partials)

    def rows(self) -> Tensor:
        """int64 ``[fields, tensors]`` in host memory, the tensors padded to a power of two."""
        padding = [Column(BEYOND, BEYOND, *[0] * (len(Column._fields) - 2))] * (
            (1 << (len(self.columns) - 1).bit_length()) - len(self.columns)
        )
        return torch.tensor(list(zip(*self.columns, *padding, strict=True)), dtype=torch.int64)
