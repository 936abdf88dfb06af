"""Second stage of the sums."""

from __future__ import annotations

from ...._triton import jit, tl


@jit(do_not_specialize=["count", "parts", "width"])
def grad_norm_finish_kernel(
    part_ptr,  # [rows, parts, width] fp32
    out_ptr,  # [rows, width] fp32
    count,  # rows · width
    parts,
    width,
    CLAMP: tl.constexpr,
    RESULTS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """out[r, i] = Σ over p of part[r, p, i], in fp64 and an order that the shape fixes; a program owns RESULTS of them."""
    result = tl.program_id(0).to(tl.int64) * RESULTS + tl.arange(0, RESULTS)
    first = result // width * parts * width + result % width
    total = tl.zeros([RESULTS, PARTS], tl.float64)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (result < count)[:, None] & (part < parts)[None, :]
        total += tl.load(part_ptr + first[:, None] + (part * width)[None, :], mask, other=0.0)
    out = tl.sum(total, axis=1)
    if CLAMP:
        out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + result, out.to(tl.float32), result < count)
