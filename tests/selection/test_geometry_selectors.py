"""k_center, herding and d2 through `select`, class by class."""

import pytest
import torch

from fastqat._errors import InputError
from fastqat.selection import ScoreTable, select
from fastqat.selection.selectors.registry import Request, get_selector

from . import geometry_oracles as oracle

LABELS = torch.arange(60) % 3


@pytest.mark.parametrize("method", ["k_center", "herding", "d2"])
def test_balanced_picks_are_those_of_each_class_alone(method):
    x, scores = oracle.data("normal", 60, 5), torch.rand(60, generator=torch.Generator().manual_seed(0))
    whole = select(ScoreTable({"loss": scores}, LABELS, x), 0.3, method=method)
    for label in range(3):
        members = (label == LABELS).nonzero().squeeze(1)
        alone = select(scores[members], 0.3, method=method, features=x[members])
        assert whole.indices[LABELS[whole.indices] == label].tolist() == members[alone.indices].tolist()
    assert whole.weights is None and len(whole) == 18


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "symmetric_kl"])
def test_k_center_takes_a_metric_and_a_first_sample(metric):
    x = oracle.data("normal", 40, 4).softmax(1)
    assert select(40, 0.25, method="k_center", features=x, metric=metric, first=7).indices.tolist() == oracle.k_center(x, 10, metric, 7)[0]
    assert select(40, 0.25, method="k_center", features=x, metric=metric).indices.tolist() == oracle.k_center(x, 10, metric)[0]


def test_k_center_draws_its_first_sample_from_the_generator():
    x = oracle.data("normal", 40, 4)
    draw = lambda seed: select(40, 0.1, method="k_center", features=x, first="random", generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert draw(1).indices.tolist() == draw(1).indices.tolist()
    assert len({int(draw(seed).indices[0]) for seed in range(8)}) > 3


def test_herding_is_the_plain_loop():
    x = oracle.data("normal", 50, 6)
    assert select(50, 0.4, method="herding", features=x).indices.tolist() == oracle.herding(x, 20)


@pytest.mark.parametrize("kind", ["normal", "lattice", "twice", "constant"])
@pytest.mark.parametrize("options", [{}, {"k": 3, "gamma_r": 0.1}, {"k": 2, "gamma_f": 0.5, "iterations": 3}, {"iterations": 0}])
def test_d2_is_the_plain_loop(kind, options):
    for size, width, budget in [(1, 2, 1), (7, 2, 7), (40, 3, 13)]:
        x = oracle.data(kind, size, width)
        scores = torch.randint(-4, 9, (size,), generator=torch.Generator().manual_seed(1)).float()
        got = get_selector("d2").pick(Request(scores, size, budget, 0, None, features=x), **options)
        want = oracle.d2(scores, x, budget, **{"k": 10, "gamma_f": 1.0, "gamma_r": 1.0, "iterations": 1, **options})
        assert got.indices.tolist() == want


def test_d2_goes_between_a_ranking_and_one_per_neighbourhood():
    """Two tight groups far apart, the scores of one above those of the other."""
    x = torch.cat((oracle.data("normal", 20, 2) * 0.01, oracle.data("normal", 20, 2, seed=1) * 0.01 + 50))
    scores = torch.cat((torch.linspace(1.0, 2.0, 20), torch.linspace(0.5, 0.9, 20)))
    pick = lambda gamma_r: select(scores, 0.1, method="d2", features=x, k=19, gamma_r=gamma_r, iterations=0).indices  # noqa: E731
    assert pick(float("inf")).tolist() == [19, 18, 17, 16]
    assert (pick(0.0)[:2] // 20).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "k_center", "first": "last"}, "first must be 'mean', 'random' or a position; got 'last'"),
        ({"method": "k_center", "first": 99}, "first must be the index of one of 8 samples; got 99"),
        ({"method": "k_center", "metric": "l1"}, "unknown metric 'l1'"),
        ({"method": "d2", "gamma_r": -1}, "gamma_r must be a number ≥ 0; got -1"),
        ({"method": "d2", "k": 0}, "k must be a whole number ≥ 1"),
        ({"method": "d2", "iterations": -1}, "iterations must be a whole number ≥ 0"),
    ],
)
def test_bad_options_say_what_to_do(options, message):
    with pytest.raises(InputError, match=message):
        select(torch.rand(8), 0.5, features=oracle.data("normal", 8, 2), **options)


def test_d2_refuses_infinite_scores():
    with pytest.raises(InputError, match="infinite"):
        select(torch.tensor([1.0, float("inf")]), 0.5, method="d2", features=torch.rand(2, 2))
