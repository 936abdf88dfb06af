"""The selectors that go by scores alone, against loops that follow their definitions; slips of public code that they must not have."""

import contextlib
import math

import pytest
import torch

from fastqat._errors import InputError
from fastqat.selection import ScoreTable, select

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install hypothesis")
from hypothesis import given, settings  # noqa: E402  # after the skip
from hypothesis import strategies as st  # noqa: E402

few_values = st.lists(st.integers(0, 5).map(float), min_size=4, max_size=50)
fractions = st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(scores, fraction, method, seed=0, **options):
    return select(torch.tensor(scores), fraction, method=method, generator=seeded(seed), **options)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(few_values, fractions)
def test_middle_leaves_out_as_many_on_both_sides(scores, fraction):
    kept = select(torch.tensor(scores), fraction, method="middle").indices.tolist()
    budget = round(fraction * len(scores))
    easiest = (len(scores) - budget) // 2
    middle = sorted(scores)[easiest : easiest + budget]
    assert sorted(scores[i] for i in kept) == middle
    for value in set(middle):
        members = [i for i, score in enumerate(scores) if score == value]
        assert sorted(i for i in kept if scores[i] == value) == members[: middle.count(value)]
    if len(set(scores)) == len(scores):
        rank = sorted(range(len(scores)), key=scores.__getitem__).index
        off = [abs(rank(i) - easiest - (budget - 1) / 2) for i in kept]
        assert off == sorted(off)


def test_moderate_keeps_the_middle_and_not_the_largest_distance():
    """The slip of the released code of ACS: its Moderate keeps the largest distances."""
    distance = torch.tensor([0.1, 9.0, 0.5, 7.0, 0.2, 8.0, 0.6, 0.4, 0.9, 0.3])
    kept = select(ScoreTable({"distance": distance}), 0.4, method="middle").indices
    assert sorted(distance[kept].tolist()) == pytest.approx([0.4, 0.5, 0.6, 0.9])
    assert not set(kept.tolist()) & set(select(distance, 0.3).indices.tolist())


def test_balance_does_not_turn_the_order_round():
    """The slip of DeepCore: its uncertainty scores without balance keep the other end."""
    generator = seeded()
    for name, uncertain in (("entropy", 1), ("confidence", -1), ("margin", -1)):
        score = torch.rand(60, generator=generator)
        table = ScoreTable({name: score}, torch.zeros(60, dtype=torch.long))
        one_class, no_class = (select(table, 0.2, balanced=balanced).indices for balanced in (True, False))
        assert torch.equal(one_class, no_class)
        assert set(one_class.tolist()) == set((uncertain * score).argsort(descending=True)[:12].tolist())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(few_values, fractions, st.integers(0, 3))
def test_infobatch_keeps_the_hard_samples_and_rescales_the_others(scores, fraction, seed):
    budget, mean = round(fraction * len(scores)), sum(scores) / len(scores)
    low = [i for i, score in enumerate(scores) if score < mean]
    high = [i for i in range(len(scores)) if i not in low]
    fits = budget >= len(high) + min(len(low), 1)
    with contextlib.nullcontext() if fits else pytest.warns(UserWarning, match="draws uniformly from all"):
        chosen = drawn(scores, fraction, "infobatch", seed)
    indices = chosen.indices.tolist()
    assert len(set(indices)) == len(indices) == budget and indices == sorted(indices, key=lambda i: (-scores[i], i))
    if not fits:
        assert chosen.weights.tolist() == pytest.approx([len(scores) / budget] * budget)
        return
    assert set(high) <= set(indices)
    kept = budget - len(high)
    want = [1.0 if i in high else len(low) / kept for i in indices]
    assert chosen.weights.tolist() == pytest.approx(want)
    assert float(chosen.weights.sum()) == pytest.approx(len(scores), rel=1e-6)


@pytest.mark.filterwarnings("ignore:infobatch")
@pytest.mark.parametrize("fraction", [0.6, 0.2])  # with room for all above the mean, and without
def test_infobatch_estimates_the_sum_of_the_losses_without_bias(fraction):
    loss = torch.rand(40, generator=seeded(1)) ** 3
    picks = [drawn(loss.tolist(), fraction, "infobatch", seed) for seed in range(2000)]
    estimates = [float((s.weights * loss[s.indices]).sum()) for s in picks]
    error = torch.tensor(estimates).std() / math.sqrt(len(estimates))
    assert abs(sum(estimates) / len(estimates) - float(loss.sum())) < 4 * error


def test_infobatch_of_several_classes_keeps_its_weights():
    loss, labels = torch.tensor([0.0, 0.0, 0.0, 9.0] * 10), torch.arange(4).repeat_interleave(10)
    chosen = select(loss, 0.6, method="infobatch", labels=labels, generator=seeded())
    assert float(chosen.weights.sum()) == pytest.approx(40)
    with pytest.warns(UserWarning, match="use a larger fraction"):
        assert drawn([1.0, 1.0, 1.0, 0.0], 0.75, "infobatch").weights.tolist() == pytest.approx([4 / 3] * 3)
    assert drawn([1.0, 1.0, 1.0, 0.0], 1.0, "infobatch").weights.tolist() == [1.0] * 4


def ccs(scores, budget, strata, beta):
    """Algorithm 1 of the paper: how many of which bin."""
    kept = sorted(range(len(scores)), key=lambda i: (scores[i], i))[: len(scores) - math.floor(beta * len(scores))]
    least, most = min(scores[i] for i in kept), max(scores[i] for i in kept)
    width = (most - least) / strata
    bins = [[] for _ in range(strata)]
    for i in kept:
        bins[min(int((scores[i] - least) / width), strata - 1) if width else 0].append(i)
    left, take = budget, {}
    open_bins = sorted(range(strata), key=lambda b: len(bins[b]))
    while open_bins:
        smallest = open_bins[0]
        take[smallest] = min(len(bins[smallest]), left // len(open_bins))
        left -= take[smallest]
        open_bins = open_bins[1:]
    return [(bins[b], take[b]) for b in range(strata)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(few_values, st.sampled_from([0.3, 0.5]), st.sampled_from([1, 3, 7, 50]), st.sampled_from([0.0, 0.2, 0.5]), st.integers(0, 2))
def test_stratified_takes_from_each_range_what_the_paper_says(scores, fraction, strata, beta, seed):
    chosen = drawn(scores, fraction, "stratified", seed, strata=strata, beta=beta).indices.tolist()
    budget = round(fraction * len(scores))
    assert len(set(chosen)) == len(chosen) == budget
    plan = ccs(scores, budget, strata, beta)
    assert sum(count for _, count in plan) == budget
    for members, count in plan:
        assert len(set(members) & set(chosen)) == count


def test_stratified_goes_by_the_direction_of_the_score_and_drops_the_hardest():
    easy_first = torch.arange(100.0)
    for name, hardest in (("evs", range(70, 100)), ("margin", range(30))):
        table = ScoreTable({name: easy_first})
        kept = select(table, 0.5, method="stratified", generator=seeded(), beta=0.3, strata=10).indices.tolist()
        assert not set(kept) & set(hardest)
        per_bin = torch.tensor(kept).sub(30 if name == "margin" else 0).div(7, rounding_mode="floor").clamp(0, 9).bincount(minlength=10)
        assert int(per_bin.min()) >= 4


def test_proportional_has_the_distribution_of_successive_draws():
    scores, draws = [1.0, 2.0, 3.0, 4.0], 4000
    first, pairs = torch.zeros(4), torch.zeros(4, 4)
    for seed in range(draws):
        a, b = drawn(scores, 0.5, "proportional", seed).indices.tolist()
        first[a] += 1
        pairs[a, b] += 1
    p = torch.tensor(scores) / 10
    assert (first / draws - p).abs().max() < 5 * 0.5 / math.sqrt(draws)
    want = p[:, None] * p / (1 - p[:, None])
    assert (pairs / draws - want.fill_diagonal_(0)).abs().max() < 5 * 0.5 / math.sqrt(draws)


def test_proportional_comes_to_score_zero_last_and_uniformly():
    counts = torch.zeros(4)
    for seed in range(1000):
        kept = drawn([0.0, 5.0, 0.0, 0.0], 0.5, "proportional", seed).indices.tolist()
        assert kept[0] == 1
        counts[kept[1]] += 1
    assert (counts[[0, 2, 3]] / 1000 - 1 / 3).abs().max() < 0.08


@settings(max_examples=80, deadline=None, derandomize=True)
@given(few_values, fractions, st.integers(0, 3))
def test_pmf_takes_the_share_of_every_value_by_largest_remainder(scores, fraction, seed):
    kept = drawn(scores, fraction, "pmf", seed).indices.tolist()
    budget, size = round(fraction * len(scores)), len(scores)
    assert len(set(kept)) == len(kept) == budget
    quota = {value: budget * scores.count(value) / size for value in set(scores)}
    got = {value: sum(scores[i] == value for i in kept) for value in quota}
    assert all(math.floor(quota[v]) <= got[v] <= math.ceil(quota[v]) for v in quota)
    raised = [quota[v] % 1 for v in quota if got[v] > math.floor(quota[v])]
    lowered = [quota[v] % 1 for v in quota if got[v] == math.floor(quota[v])]
    assert not raised or not lowered or min(raised) >= max(lowered) - 1e-9


def test_pmf_is_uniform_inside_a_stratum_and_over_scores_that_all_differ():
    for scores in ([1.0] * 10, [float(i) for i in range(10)]):
        counts = torch.zeros(10)
        for seed in range(2000):
            counts[drawn(scores, 0.3, "pmf", seed).indices] += 1
        assert (counts / 2000 - 0.3).abs().max() < 0.05


def test_importance_has_its_weights_and_is_unbiased():
    score, mix = torch.rand(30, generator=seeded(2)) + 0.2, 0.2
    loss = torch.randn(30, generator=seeded(3)) ** 2
    p = (1 - mix) * score / score.sum() + mix / 30
    counts, estimates, draws = torch.zeros(30), [], 3000
    for seed in range(draws):
        chosen = drawn(score.tolist(), 0.3, "importance", seed, mix=mix)
        assert len(set(chosen.indices.tolist())) == 9
        torch.testing.assert_close(chosen.weights, 1 / (30 * p[chosen.indices]), rtol=1e-5, atol=0)
        counts[chosen.indices] += 1
        estimates.append(float((chosen.weights * loss[chosen.indices]).mean()))
    assert (counts / draws - 9 * p).abs().max() < 5 * 0.5 / math.sqrt(draws)
    error = torch.tensor(estimates).std() / math.sqrt(draws)
    assert abs(sum(estimates) / draws - float(loss.mean())) < 4 * error
    assert float(chosen.weights.max()) <= 1 / mix


def test_importance_with_certain_samples_and_classes_stays_unbiased():
    score = torch.tensor([50.0, 40.0, *torch.rand(28, generator=seeded(4)).tolist()])
    labels, loss = torch.arange(30) % 3, torch.rand(30, generator=seeded(5))
    for given_labels in (None, labels):
        estimates = []
        for seed in range(3000):
            chosen = select(score, 0.4, method="importance", labels=given_labels, generator=seeded(seed))
            assert {0, 1} <= set(chosen.indices.tolist()) and len(chosen.indices.unique()) == 12
            estimates.append(float((chosen.weights * loss[chosen.indices]).mean()))
        error = torch.tensor(estimates).std() / math.sqrt(len(estimates))
        assert abs(sum(estimates) / len(estimates) - float(loss.mean())) < 4 * error


def test_importance_of_equal_or_zero_scores_is_uniform_and_of_all_samples_exact():
    for score in (0.0, 3.0):
        assert drawn([score] * 20, 0.25, "importance").weights.tolist() == pytest.approx([1.0] * 5)
    whole = drawn([0.0, 1.0, 2.0, 1e6], 1.0, "importance")
    assert sorted(whole.indices.tolist()) == [0, 1, 2, 3] and whole.weights.tolist() == [1.0] * 4


def test_importance_on_a_large_set_never_picks_twice():
    score = torch.rand(200_000, generator=seeded(6)).pow(8)
    chosen = select(score, 0.37, method="importance", generator=seeded(), mix=0.01)
    assert len(chosen.indices.unique()) == len(chosen) == 74_000


@pytest.mark.parametrize("method", ["middle", "infobatch", "stratified", "proportional", "pmf", "importance"])
def test_one_sample_all_samples_and_all_equal(method):
    assert drawn([2.0], 1.0, method).indices.tolist() == [0]
    assert sorted(drawn([2.0] * 7, 1.0, method).indices.tolist()) == list(range(7))
    state = torch.get_rng_state()
    assert torch.equal(*(drawn(list(map(float, range(20))), 0.9, method, 5).indices for _ in range(2)))
    assert torch.equal(state, torch.get_rng_state()), "draws come from generator= alone"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drawn([1.0] * 4, 0.5, "stratified", strata=0), "strata must be a whole number ≥ 1; got 0"),
        (lambda: drawn([1.0] * 4, 0.5, "stratified", beta=1.5), r"must be a number in \[0, 1\]; got 1.5"),
        (lambda: drawn([1.0] * 4, 0.5, "stratified", beta="0.1"), r"must be a number in \[0, 1\]; got '0.1'"),
        (
            lambda: drawn([1.0] * 4, 0.75, "stratified", beta=0.5),
            "beta 0.5 leaves 50.0% of the samples, but 75.0% are to be kept; lower it",
        ),
        (lambda: drawn([1.0, math.inf], 0.5, "stratified"), "needs finite scores"),
        (lambda: drawn([1.0, math.inf], 0.5, "infobatch"), "needs finite scores"),
        (lambda: drawn([1.0, -0.5], 0.5, "proportional"), "needs scores of at least 0, of which large ones are best; got -0.5"),
        (lambda: drawn([1.0, -0.5], 0.5, "importance"), "needs scores of at least 0"),
        (lambda: drawn([1.0, 0.5], 0.5, "proportional", by="margin"), "got -1; use evs, loss"),
        (lambda: drawn([1.0, 2.0], 0.5, "importance", mix=0), r"must be a number in \(0, 1\]; got 0"),
        (lambda: drawn([1.0, 2.0], 0.5, "importance", mix=None), r"must be a number in \(0, 1\]; got None"),
        (lambda: select(4, 0.5, method="middle"), "middle needs scores"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
