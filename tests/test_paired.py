"""Intervals, Holm's correction and verdicts, against scipy and cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from scipy import stats

from fastqat._bench.paired import BETTER, NOT_WORSE, OPEN, WORSE, Paired, holm, paired, verdicts
from fastqat._errors import InputError


@pytest.mark.parametrize("seed", range(5))
def test_without_clusters_it_is_the_t_interval(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.2, 1, 3 + seed)
    found, test = paired(values.tolist()), stats.ttest_1samp(values, 0)
    interval = test.confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), interval.low, interval.high))
    assert found.p_value() == pytest.approx(test.pvalue)
    assert found.p_value(-0.3) == pytest.approx(stats.ttest_1samp(values, -0.3).pvalue)


def test_equal_clusters_give_the_t_interval_of_their_means() -> None:
    values = [1.0, 1.1, 0.0, 0.1, -1.0, -0.9]  # the checkpoints differ, the seeds of one hardly do
    found, test = paired(values, [0, 0, 1, 1, 2, 2]), stats.ttest_1samp([1.05, 0.05, -0.95], 0)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (found.freedom, found.pairs, found.clusters) == (2, 6, 3)
    assert found.p_value() == pytest.approx(test.pvalue)
    assert found.high - found.low > 2 * paired(values).half


def test_the_wider_interval_is_reported() -> None:
    values = [1.0, -1.0, 0.9, -0.9, 1.1, -1.1]  # every checkpoint's mean is 0: over clusters the interval would be a point
    assert paired(values, [0, 0, 1, 1, 2, 2]) == Paired(**{**vars(paired(values)), "clusters": 3})


def test_unequal_clusters_by_hand() -> None:
    # mean 2; sums of deviations −1 − 2 = −3, 2 and 1; √(3/2 · (9 + 4 + 1)) / 4
    found = paired([1.0, 0.0, 4.0, 3.0], ["a", "a", "b", "c"])
    assert (found.mean, found.error, found.freedom) == (2.0, pytest.approx(math.sqrt(21) / 4), 2)


def test_two_clusters_have_one_degree_of_freedom() -> None:
    found, test = paired([1.0, 1.1, 0.0, 0.1], [0, 0, 1, 1]), stats.ttest_1samp([1.05, 0.05], 0)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert verdicts([found]) == [OPEN]


@pytest.mark.parametrize("models", [2, 3])
def test_intervals_cover_with_few_float_models(models: int) -> None:
    random, missed = np.random.default_rng(0), 0
    for _ in range(400):
        shared = 0.5 * random.normal(size=models)
        found = paired([shared[seed % models] + 0.2 * random.normal() for seed in range(8)], [seed % models for seed in range(8)])
        missed += not found.low < 0 < found.high
    assert missed / 400 < 0.08


def test_one_cluster_is_said() -> None:
    assert paired([0.5, 0.6, 0.7], [0, 0, 0]).one_model and not paired([0.5, 0.6, 0.7]).one_model


def test_one_pair_tells_nothing() -> None:
    found = paired([5.0], [0])
    assert (found.low, found.high, found.p_value()) == (-math.inf, math.inf, 1.0)
    assert verdicts([found]) == [OPEN]


@pytest.mark.parametrize("values", [[0.28, 0.28], [0.2778, 0.2777, 0.2778], [-0.5, -0.5, -0.5]])
def test_pairs_that_all_differ_by_the_same_tell_nothing(values: list[float]) -> None:
    found = paired(values)
    assert (found.low, found.high, found.p_value()) == (-math.inf, math.inf, 1.0)
    assert verdicts([found]) == [OPEN]


def test_pairs_that_do_not_differ() -> None:
    found = paired([0.0, 0.0])
    assert (found.low, found.high, found.p_value(), found.p_value(0.5)) == (0.0, 0.0, 1.0, 0.0)
    assert verdicts([found]) == [NOT_WORSE]


@pytest.mark.parametrize(("values", "clusters"), [([], None), ([math.nan, 1.0], None), ([1.0, 2.0], [0])])
def test_refused(values: list[float], clusters: list[int] | None) -> None:
    with pytest.raises(InputError, match="must be"):
        paired(values, clusters)


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 → ×4 .02, ×3 .03, ×2 .06, ×1 .04 which may not fall below .06
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def around(mean: float, half: float, freedom: int = 7) -> Paired:
    """A difference whose 95 % interval is mean ± half."""
    return Paired(mean, half / stats.t.ppf(0.975, freedom), freedom, freedom + 1, freedom + 1)


@pytest.mark.parametrize(
    ("mean", "half", "said"),
    [(0.5, 0.4, BETTER), (0.5, 0.6, NOT_WORSE), (0.0, 0.29, NOT_WORSE), (-0.2, 0.09, NOT_WORSE), (-0.5, 0.4, WORSE), (-0.5, 0.6, OPEN),
     (0.5, 0.9, OPEN)],
)  # fmt: skip
def test_a_single_verdict_is_about_the_interval(mean: float, half: float, said: str) -> None:
    assert verdicts([around(mean, half)]) == [said]


def test_a_family_asks_for_more() -> None:
    narrow = around(0.5, 0.45)  # alone better; of two, p < 0.05 / 2 is asked
    assert verdicts([narrow, narrow]) == [NOT_WORSE, NOT_WORSE]
    assert verdicts([narrow, around(0.5, 0.1)]) == [BETTER, BETTER]
