"""Triton kernels of the logit scores, launched from ``launch.py``: one read of both logit rows from memory, fp32 sums, no atomics.

``tiles.py`` has the maths on tiles of logits; ``rows.py`` holds short rows in registers and, with ``lanes.py``, sums long ones in one pass;
``finish.py`` turns sums into scores.
"""

from .rows import score_long_rows_kernel, score_rows_kernel

__all__ = ["score_long_rows_kernel", "score_rows_kernel"]
