"""logit_scores on the CPU between rows that agree closely with the teacher and rows that do not: two ways to compare them."""

from __future__ import annotations

import pytest
import torch

import fastqat as fq
from fastqat import logit_scores
from fastqat.testing import places

from .logit_cases import Oracle, assert_within_contract, some_targets


@pytest.mark.skipif(("cpu", "cpu") not in places("logit_scores"), reason="fastqat._C is not built")
@pytest.mark.parametrize("classes", [2, 17, 1000])
def test_accuracy_where_plain_sums_take_over(classes: int) -> None:
    torch.manual_seed(0)
    # From rows that are compared class by class to rows whose sums may cancel a little.
    distances = torch.linspace(0.02, 1.5, 60_000 // (classes + 200))[:, None]
    teacher = torch.randn(len(distances), classes) * 3
    one_class = torch.cat([teacher[:, :1] + 2 * distances, teacher[:, 1:]], dim=1)
    oracle = Oracle(teacher)
    with fq.use_backend("cpu"):
        for logits in (teacher + distances * torch.randn_like(teacher), one_class, one_class + 1000):
            targets = some_targets(logits)
            got = logit_scores(logits, targets, teacher)
            for name, want in Oracle(logits).scores(targets, oracle).items():
                assert_within_contract(name, getattr(got, name), want)
