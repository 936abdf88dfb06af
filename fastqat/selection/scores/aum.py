"""Area under the margin: how far the label was ahead of every other class while the model learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastqat.selection.scores.registry import register_score

if TYPE_CHECKING:
    from fastqat.selection.recording.dynamics import Dynamics


@register_score(
    "aum",
    formula="mean over showings of z_y − max_{j≠y} z_j",
    direction="smallest",
    needs=("targets", "dynamics"),
    source="AUM, Pleiss et al., NeurIPS 2020 (arXiv 2001.10528); as a score of coresets, CCS, Zheng et al., ICLR 2023",
)
def aum(dynamics: Dynamics) -> Tensor | None:
    """Mean margin of the label on raw logits. ``[N]``. The smallest are the hardest, wrong labels among them: see `find_label_issues`."""
    return dynamics.margin
