"""select, its budgets and every registered selector, against loops that follow the definitions."""

import pytest
import torch

from fastqat._errors import InputError
from fastqat.selection import ScoreTable, Selection, get_selector, list_selectors, register_selector, select
from fastqat.selection.selectors import registry

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install hypothesis")
from hypothesis import given, settings  # noqa: E402  # after the skip
from hypothesis import strategies as st  # noqa: E402


def oracle(scores, fraction, labels=None, descending=True):
    """Sort by (score, index) in each class, cut at round(fraction * n_c), then sort what is left the same way."""
    key = lambda i: (-scores[i] if descending else scores[i], i)  # noqa: E731
    classes = [range(len(scores))] if labels is None else [[i for i, y in enumerate(labels) if y == c] for c in sorted(set(labels))]
    kept = [i for members in classes for i in sorted(members, key=key)[: round(fraction * len(members))]]
    return sorted(kept, key=key)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=3, max_size=60), st.sampled_from([0.25, 0.5, 0.7, 1.0]))
def test_topk_and_bottomk_equal_the_oracle_ties_included(samples, fraction):
    scores, labels = [float(s) for s, _ in samples], [y for _, y in samples]
    if min(round(fraction * labels.count(y)) for y in set(labels)) == 0 or round(fraction * len(labels)) == 0:
        return
    values = torch.tensor(scores)
    for method, descending in (("topk", True), ("bottomk", False)):
        assert select(values, fraction, method=method).indices.tolist() == oracle(scores, fraction, None, descending)
        assert select(values, fraction, method=method, labels=labels).indices.tolist() == oracle(scores, fraction, labels, descending)
        assert select(values, fraction, method=method, labels=labels, balanced=False).indices.tolist() == oracle(
            scores, fraction, None, descending
        )


@pytest.mark.parametrize("method", sorted(list_selectors()))
def test_every_selector_balances_repeats_itself_and_never_picks_twice(method):
    torch.manual_seed(0)
    labels = torch.randint(0, 7, (500,))
    few_high_losses = torch.rand(500).pow(60)
    features = torch.rand(500, 7).softmax(1) - torch.eye(7)[labels]  # of the kind "error", which suits all of them
    table = ScoreTable({"loss": few_high_losses}, labels, features)
    generator = (lambda: None) if method == "rs2" else (lambda: torch.Generator().manual_seed(3))
    given = {"method": method, "val_features": features[:20]}
    first, second = (select(table, 0.13, **given, generator=generator()) for _ in range(2))
    assert torch.equal(first.indices, second.indices)
    assert first.indices.dtype == torch.int64 and len(first.indices.unique()) == len(first)
    want = [round(0.13 * int(n)) for n in labels.bincount()]
    assert labels[first.indices].bincount(minlength=7).tolist() == want
    assert len(select(table, 0.13, **given, balanced=False, generator=generator())) == 65
    assert sorted(select(table, 1.0, **given, generator=generator()).indices.tolist()) == list(range(500))


def test_the_direction_of_a_named_score_decides_which_end_is_best():
    table = ScoreTable({"margin": torch.tensor([0.9, 0.1, 0.5, 0.1]), "evs": torch.tensor([0.9, 0.1, 0.5, 0.1])})
    assert select(table, 0.5, by="margin").indices.tolist() == [1, 3]
    assert select(table, 0.5, by="margin", method="bottomk").indices.tolist() == [0, 2]
    assert select(table, 0.5, by="evs").indices.tolist() == [0, 2]
    assert select(table["margin"], 0.5, by="margin").indices.tolist() == [1, 3]


def test_lists_and_integers_are_scores_too():
    assert select([1, 3, 2**24 + 1, 2**24], 0.5).indices.tolist() == [2, 3]


def test_all_scores_equal_gives_the_lowest_indices_of_each_class():
    assert select(torch.ones(8), 0.5, labels=[1, 0, 1, 0, 1, 0, 1, 0]).indices.tolist() == [0, 1, 2, 3]


def test_negative_zero_and_infinities_are_ordinary_scores():
    assert select(torch.tensor([-0.0, 0.0, float("inf"), -float("inf")]), 0.75).indices.tolist() == [2, 0, 1]


def test_random_is_uniform():
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(10)
    for _ in range(3000):
        counts[select(10, 0.3, method="random", generator=generator).indices] += 1
    assert (counts / 3000 - 0.3).abs().max() < 0.04  # five standard deviations of a share of 3000 draws


def test_rs2_shows_every_sample_before_one_comes_back():
    labels = torch.arange(60) % 3
    epochs = [select(60, 0.2, method="rs2", labels=labels, epoch=epoch, seed=1).indices for epoch in range(10)]
    for cycle in (epochs[:5], epochs[5:]):
        assert sorted(torch.cat(cycle).tolist()) == list(range(60))
    assert epochs[0].tolist() != epochs[5].tolist()
    assert torch.equal(epochs[7], select(60, 0.2, method="rs2", labels=labels, epoch=7, seed=1).indices)
    drawn = [set(select(60, 0.5, method="rs2", epoch=epoch, replacement=True).indices.tolist()) for epoch in range(2)]
    assert drawn[0] & drawn[1] and drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select(torch.rand(4), 0.0), r"fraction must be in \(0, 1\]; got 0.0"),
        (lambda: select(torch.rand(4), 1.5), r"fraction must be in \(0, 1\]; got 1.5"),
        (lambda: select(torch.rand(4), float("nan")), "fraction must be in"),
        (lambda: select(torch.rand(4), "0.1"), r"fraction must be a number in \(0, 1\]; got str '0.1'"),
        (lambda: select(torch.rand(4), None), "fraction must be a number"),
        (lambda: select(torch.rand(4), True), "fraction must be a number"),
        (lambda: select(None, 0.5), "scores must be a ScoreTable, one number per sample, or the number of samples; got NoneType"),
        (lambda: select("abc", 0.5, method="random"), "got str 'abc'"),
        (lambda: select(True, 0.5, method="random"), r"got shape \[\]"),
        (lambda: select(torch.rand(4), 0.5, by=["evs"]), r"by must be the name of a score, or None; got \['evs'\]"),
        (lambda: select(torch.rand(4), 0.5, method=None), "method must be the name of a selector"),
        (lambda: select(torch.rand(4), 0.5, labels=["cat"] * 4), "labels must be integers, one per sample; got list"),
        (lambda: select(torch.rand(4), 0.5, balanced="no"), "balanced must be True, False or None; got 'no'"),
        (lambda: select(4, 0.5, method="random", generator=0), "generator must be a torch.Generator or None; got 0"),
        (lambda: select(4, 0.5, method="rs2", epoch=1.5), "epoch must be a whole number ≥ 0; got 1.5"),
        (lambda: select(torch.rand(4), 0.1), r"fraction 0.1 of 4 samples selects none; use fraction ≥ 0.126"),
        (lambda: select(torch.rand(5), 0.3, labels=[7, 7, 7, 7, 9]), r"leaves class 9 \(1 samples\) empty; use fraction ≥ 0.501"),
        (lambda: select(torch.tensor([0.0, float("nan"), float("nan")]), 0.5), "2 scores are NaN, the first at index 1"),
        (lambda: select(torch.rand(4), 0.5, labels=[0, 1]), r"labels must have one value per sample, \[4\]; got \[2\]"),
        (lambda: select(torch.rand(4), 0.5, labels=[0.0] * 4), "labels must be integers"),
        (lambda: select(torch.rand(0), 0.5), "N ≥ 1"),
        (lambda: select(torch.rand(2, 2), 0.5), r"got shape \[2, 2\]"),
        (lambda: select(0, 0.5, method="random"), "0 samples"),
        (lambda: select(4, 0.5), "topk needs scores"),
        (lambda: select(torch.rand(4), 0.5, balanced=True), "balanced=True needs labels"),
        (lambda: select(torch.rand(4), 0.5, method="best"), "unknown selector 'best'; choose one of .*, topk"),
        (lambda: select(torch.rand(4), 0.5, epoch=3), "topk does not take epoch"),
        (lambda: select(ScoreTable({"a": torch.rand(2), "b": torch.rand(2)}), 0.5), "by='a' or 'b'"),
        (lambda: select(ScoreTable({"a": torch.rand(2)}), 0.5, by="c"), "no score 'c'; it has a"),
        (lambda: select(4, 0.5, method="rs2", generator=torch.Generator()), "leave generator= out"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 499, 500, 501, 1000, 123457])
def test_the_fraction_that_an_error_proposes_does(size):
    with pytest.raises(InputError) as error:
        select(torch.rand(size), 0.01 / size)
    fraction = float(str(error.value).rsplit("≥ ", 1)[1])
    assert len(select(torch.rand(size), fraction)) == 1


def test_a_new_selector_is_one_registration_and_its_weights_come_through(monkeypatch):
    monkeypatch.setattr(registry, "_selectors", dict(registry._selectors))

    @register_selector("first", rule="the first ones", source="this test", weights="sum")
    def first(request, *, skip=0):
        return Selection(torch.arange(skip, skip + request.budget), torch.full((request.budget,), float(request.group)))

    chosen = select(8, 0.5, method="first", labels=[0, 1] * 4, skip=1)
    assert chosen.indices.tolist() == [2, 3, 4, 5]
    assert chosen.weights.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert get_selector("first").options == ("skip",)
    with pytest.raises(ValueError, match="already registered"):
        register_selector("first", rule="", source="")(first)
