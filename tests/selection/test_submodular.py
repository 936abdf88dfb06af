"""Facility location, CRAIG and graph cut against plain loops in fp64, and against other packages."""

import pytest
import torch

from fastqat._errors import InputError
from fastqat.selection import select
from fastqat.selection.geometry import facility
from fastqat.selection.geometry.costs import Costs
from fastqat.selection.geometry.facility import facility_location
from fastqat.selection.geometry.graph_cut import graph_cut
from fastqat.selection.geometry.pair_lists import PairLists

from . import geometry_oracles, submodular_oracles

SIZES = [(1, 2, 1), (7, 2, 7), (40, 3, 13), (90, 8, 30)]


@pytest.mark.parametrize("kind", geometry_oracles.KINDS)
@pytest.mark.parametrize("similarity", ["euclidean", "cosine", "rbf"])
def test_facility_location_is_the_plain_loop(kind, similarity, monkeypatch):
    monkeypatch.setattr(facility, "_TILE", (16, 24))
    for size, width, budget in SIZES:
        x = geometry_oracles.data(kind, size, width)
        if kind in ("far away", "near duplicates", "huge", "tiny") and similarity != "euclidean":
            x = x.double()  # all nearly alike: fp32 would round what tells them apart differently in loop and candidate
        want = submodular_oracles.facility_location(x, budget, similarity)[0]
        for limit in (1 << 20, 4 * size**2 - 1, 0):  # all costs are kept, those that matter are listed, neither
            assert facility_location(x, budget, similarity=similarity, max_bytes=limit)[0].tolist() == want, (size, limit)


def test_every_sample_is_served_by_its_nearest_pick():
    x = geometry_oracles.data("normal", 80, 4)
    picks, serves, _ = submodular_oracles.facility_location(x, 20, "euclidean")
    got, served_by = facility_location(x, 20)
    assert got.tolist() == picks and served_by.tolist() == serves.tolist()
    assert served_by[got].tolist() == list(range(20))


def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    return torch.from_numpy(datasets.load_digits().data).float()


def test_picks_on_digits_are_those_of_the_plain_loop():
    x = digits()[:500]
    for similarity in ("euclidean", "cosine"):
        want = submodular_oracles.facility_location(x, 60, similarity)[0]
        assert facility_location(x, 60, similarity=similarity)[0].tolist() == want
    assert graph_cut(x, 200).tolist() == submodular_oracles.graph_cut(x, 200, 1.0)


@pytest.mark.parametrize("kind", geometry_oracles.KINDS)
@pytest.mark.parametrize("redundancy", [0.0, 0.5, 1.0, 30.0])
def test_graph_cut_is_the_plain_loop(kind, redundancy):
    for size, width, budget in SIZES:
        x = geometry_oracles.data(kind, size, width)
        assert graph_cut(x, budget, redundancy=redundancy).tolist() == submodular_oracles.graph_cut(x, budget, redundancy)
        want = submodular_oracles.graph_cut(x, budget, redundancy, "dot")
        assert graph_cut(x, budget, redundancy=redundancy, similarity="dot").tolist() == want


@pytest.mark.parametrize("patience", [1, 10**9])
def test_graph_cut_looks_again_or_through_a_screen_when_the_followed_samples_run_out(patience, monkeypatch):
    monkeypatch.setattr("fastqat.selection.geometry.directions._PATIENCE", patience)
    monkeypatch.setattr("fastqat.selection.geometry.directions._FOLLOWED", 5)
    for kind in ("normal", "twice", "constant"):
        x = geometry_oracles.data(kind, 70, 4)
        assert graph_cut(x, 50, redundancy=2.0).tolist() == submodular_oracles.graph_cut(x, 50, 2.0)


def test_craig_weights_are_cluster_sizes_over_their_mean():
    """DeepCore starts to count at one, so that its sizes add up to N + K."""
    x = geometry_oracles.data("normal", 90, 3)
    chosen = select(90, 0.2, method="craig", features=x)
    sizes = submodular_oracles.facility_location(x, 18, "euclidean")[1].bincount(minlength=18)
    assert torch.allclose(chosen.weights, sizes * 18 / 90)
    assert float(chosen.weights.mean()) == pytest.approx(1.0)
    assert int(sizes.sum()) == 90


def test_craig_of_classes_keeps_the_mean():
    x, labels = geometry_oracles.data("normal", 90, 3), torch.arange(90).clamp_max(60) // 30
    chosen = select(90, 0.2, method="craig", features=x, labels=labels)
    assert float(chosen.weights.mean()) == pytest.approx(1.0, rel=1e-5)
    for label in range(3):
        members = (labels == label).nonzero().flatten()
        of_class = labels[chosen.indices] == label
        alone = select(len(members), 0.2, method="craig", features=x[members])
        assert chosen.indices[of_class].tolist() == members[alone.indices].tolist()
        assert float(chosen.weights[of_class].sum()) / len(chosen) == pytest.approx(len(members) / 90, rel=1e-5)


def test_equal_samples_serve_themselves_when_nothing_is_left_to_gain():
    picks, served_by = facility_location(torch.ones(5, 3), 4)
    assert picks.tolist() == [0, 1, 2, 3]
    assert served_by.bincount(minlength=4).sum() == 5


def test_unit_and_offset_of_the_features_do_not_matter():
    x = geometry_oracles.data("normal", 60, 4).double()
    want = facility_location(x, 20)[0].tolist()
    assert facility_location(2.0**60 * x, 20)[0].tolist() == want
    assert facility_location(x + 1000, 20)[0].tolist() == want
    assert facility_location(x.half(), 20)[0].tolist() == facility_location(x.half().float(), 20)[0].tolist()


@pytest.mark.parametrize("similarity", ["euclidean", "cosine", "rbf"])
def test_costs_stay_within_their_bounds(similarity):
    x = geometry_oracles.data("normal", 200, 64).abs()
    x[:100] = x[100:] + 1e-4 * x[:100]
    costs = Costs(x, similarity)
    everyone = torch.arange(200)
    exact, got = costs.exact(everyone, everyone), costs.block(slice(None), slice(None)).double()
    assert bool((got < costs.below(exact + 1e-12)).all())
    errors = costs.squared_errors(got.float(), costs.sq_norms[:, None], costs.sq_norms)
    assert bool(((got - exact).square() <= errors).all()) and float(errors.max()) <= costs.largest_squared_error
    assert torch.equal(got.diagonal(), exact.diagonal().float().double())


def test_lists_hold_rows_of_any_length_and_grow():
    lists = PairLists(4, 1, torch.float32, torch.device("cpu"))
    costs = torch.arange(16.0).reshape(4, 4)
    keep = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
    lists.append(costs[:3], keep[:3])
    lists.append(costs[3:], keep[3:])
    place, others, values = lists.rows(torch.tensor([3, 1, 0, 2]))
    assert place.tolist() == [0, 2, 2, 3, 3, 3, 3]
    assert others.tolist() == [3, 0, 2, 0, 1, 2, 3]
    assert values.tolist() == [15.0, 0.0, 2.0, 8.0, 9.0, 10.0, 11.0]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_apricot_reaches_the_same_objective(metric):
    apricot = pytest.importorskip("apricot", reason="apricot-select is not installed")
    x = geometry_oracles.data("normal", 60, 4)
    c = submodular_oracles.costs(x, metric)
    s = c.max() - c if metric == "euclidean" else 1 - c
    theirs = apricot.FacilityLocationSelection(15, metric="precomputed", optimizer="naive").fit(s.numpy())
    ours = facility_location(x, 15, similarity=metric)[0]
    value = lambda picks: float(s[:, picks].amax(1).sum())  # noqa: E731
    assert value(ours) == pytest.approx(value(torch.as_tensor(theirs.ranking)), rel=1e-12)


def test_submodlib_reaches_the_same_objectives():
    functions = pytest.importorskip("submodlib.functions", reason="submodlib-py is not installed")
    x = geometry_oracles.data("normal", 60, 4).abs()
    c = submodular_oracles.costs(x, "euclidean").float()
    s = (c.max() - c).numpy()
    location = functions.facilityLocation.FacilityLocationFunction(n=60, mode="dense", sijs=s, separate_rep=False)
    theirs = [pick for pick, _ in location.maximize(budget=15, optimizer="NaiveGreedy", stopIfZeroGain=False, stopIfNegativeGain=False)]
    assert location.evaluate(set(facility_location(x, 15)[0].tolist())) == pytest.approx(location.evaluate(set(theirs)), rel=1e-5)
    unit = torch.nn.functional.normalize(x)
    s = (unit @ unit.T).numpy()
    cut = functions.graphCut.GraphCutFunction(n=60, mode="dense", lambdaVal=0.4, ggsijs=s)
    theirs = [pick for pick, _ in cut.maximize(budget=15, optimizer="NaiveGreedy", stopIfZeroGain=False, stopIfNegativeGain=False)]
    ours = graph_cut(x, 15, redundancy=0.4).tolist()
    assert cut.evaluate(set(ours)) == pytest.approx(cut.evaluate(set(theirs)), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: select(9, 0.5, method="facility_location"), "compares samples by their features; pass features="),
        (lambda x: select(9, 0.5, method="facility_location", features=x, similarity="l2"), "one of euclidean, cosine, rbf; got 'l2'"),
        (lambda x: select(9, 0.5, method="facility_location", features=x, bandwidth=1.0), "belongs to similarity='rbf'"),
        (
            lambda x: select(9, 0.5, method="facility_location", features=x, similarity="rbf", bandwidth=0),
            "a positive number or None; got 0",
        ),
        (lambda x: select(9, 0.5, method="graph_cut", features=x, redundancy=-1), "redundancy must be a number ≥ 0; got -1"),
        (lambda x: select(9, 0.5, method="graph_cut", features=x, similarity="rbf"), "'cosine' or 'dot'; got 'rbf'"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(call, message):
    with pytest.raises(InputError, match=message) as error:
        call(torch.rand(9, 2))
    assert "\n" not in str(error.value)
