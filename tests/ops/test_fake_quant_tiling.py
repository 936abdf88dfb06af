"""How the Triton kernels cut a tensor: nothing left out, nothing twice, nothing shared between threads."""

from __future__ import annotations

import pytest

from fastqat.ops._layout import View
from fastqat.ops.fake_quant.tiling import tiling

VIEW_CASES = [
    View(1, 1, 1, 1),
    View(1, 1, 1, 2**33 + 5),
    View(1, 1, 64, 147),
    View(1, 1, 2**20, 32),
    View(1, 256, 64, 3136),
    View(1, 256, 2048, 49),
    View(1, 802816, 24, 1),
    View(1, 200704, 3, 1),
    View(1, 7, 3, 5),
    View(1, 1, 512, 1),
    View(8192, 32, 9, 1),
    View(1, 3, 2**30 + 1, 2),
]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("view", VIEW_CASES, ids=str)
def test_a_cut_covers_the_view_once(view: View, itemsize: int, backward: bool) -> None:
    cut = tiling(view, itemsize, backward)
    rows, columns = cut.constants["ROWS"], cut.constants["COLUMNS"]
    matrices = view.blocks if cut.by_column else view.outer
    assert cut.rows * cut.fold * (1 if cut.by_column else view.outer) >= (view.outer if cut.by_column else view.outer * view.channels)
    row_tiles, column_tiles = -(-cut.rows // rows), -(-cut.width // columns)
    assert cut.programs == matrices * row_tiles * column_tiles < 2**31
    steps, groups = (row_tiles, matrices * column_tiles) if cut.by_column else (matrices * column_tiles, row_tiles)
    assert cut.backward_programs == groups * cut.chunks and (cut.chunks - 1) * cut.steps < steps <= cut.chunks * cut.steps
    assert rows * columns >= 32 * cut.options["num_warps"] * 16 // itemsize, "threads would share elements"
    assert cut.width % max(cut.constants["ALIGN"], 1) == 0
    assert (columns if not cut.by_column else rows) % cut.run == 0 and cut.run <= 8, "the bound of the sums holds for 8 terms in fp32"
