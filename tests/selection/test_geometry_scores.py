"""Contextual diversity, CAL and moderate against their formulas, sample by sample."""

import numpy as np
import pytest
import torch

from fastqat._errors import InputError
from fastqat.selection import get_score, select
from fastqat.selection.scores.registry import WholePass

from . import geometry_oracles as oracle


def whole(kind="normal", size=40, classes=4, width=3, seed=0):
    """A pass with probabilities of a named kind, embeddings and labels."""
    p = oracle.data(kind, size, classes, seed).mul(2).softmax(1)
    return WholePass(oracle.data("normal", size, width, seed + 1), p, torch.arange(size) % 3)


@pytest.mark.parametrize("kind", ["normal", "twice", "lattice", "constant", "near duplicates", "huge"])
@pytest.mark.parametrize("picks", [None, 1, 2, 25, 40])
def test_topk_of_contextual_diversity_is_the_greedy_subset(kind, picks):
    given = whole(kind)
    scores = get_score("contextual_diversity").compute(given, picks=picks)
    greedy = oracle.k_center(given.probabilities, picks or 4, "symmetric_kl")[0]
    assert scores.dtype == torch.float32 and bool(scores.isfinite().all())
    for count in range(1, len(greedy) + 1):
        assert select(scores, count / 40, by="contextual_diversity").indices.tolist() == greedy[:count]


def test_contextual_diversity_is_the_radius_of_the_traversal():
    given = whole()
    scores = get_score("contextual_diversity").compute(given, picks=10)
    picks, radii = oracle.k_center(given.probabilities, 10, "symmetric_kl")
    assert float(scores[picks[0]]) == float(np.nextafter(np.float32(radii[picks[1]]), np.float32(np.inf)))
    rest = [i for i in range(40) if i != picks[0]]
    torch.testing.assert_close(scores[rest].double(), radii[rest], rtol=1e-6, atol=0)


def test_contextual_diversity_of_one_sample():
    assert get_score("contextual_diversity").compute(whole(size=1)).tolist() == [float(np.nextafter(np.float32(0), np.float32(1)))]


@pytest.mark.parametrize(("k", "size"), [(10, 40), (3, 40), (10, 5), (10, 1)])
def test_cal_is_the_mean_divergence_from_the_neighbours(k, size):
    given = whole(size=size)
    got = get_score("cal").compute(given, k=k)
    p = given.probabilities.double().numpy()
    neighbours = oracle.nearest(given.embeddings, min(k, size - 1), "euclidean")[1].tolist() if size > 1 else [[]]
    want = [np.mean([np.sum(p[n] * np.log(p[n] / p[i])) for n in near]) if near else 0.0 for i, near in enumerate(neighbours)]
    torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_cal_keeps_the_sample_that_its_neighbours_contradict():
    p = torch.full((12, 2), 0.5)
    p[:, 0], p[:, 1] = 0.9, 0.1
    p[5] = torch.tensor([0.1, 0.9])
    scores = get_score("cal").compute(WholePass(oracle.data("normal", 12, 2), p, None), k=3)
    assert get_score("cal").direction == "largest"
    assert select(scores, 1 / 12, by="cal").indices.tolist() == [5]


def test_probabilities_of_zero_leave_the_scores_finite():
    p = torch.eye(3)[torch.arange(12) % 3]
    given = WholePass(oracle.data("normal", 12, 2), p, None)
    for name in ("cal", "contextual_diversity"):
        assert bool(get_score(name).compute(given).isfinite().all())


@pytest.mark.parametrize("size", [40, 41, 1])
def test_moderate_is_the_distance_to_the_median_of_the_class(size):
    given = whole(size=size, width=5)
    x, labels = given.embeddings.double().numpy(), given.labels.numpy()
    want = [np.linalg.norm(x[i] - np.median(x[labels == labels[i]], axis=0)) for i in range(size)]
    torch.testing.assert_close(get_score("moderate").compute(given).double(), torch.tensor(want), rtol=1e-6, atol=1e-7)


def test_the_middle_of_moderate_is_the_same_from_either_end():
    labels = torch.arange(41) % 3
    scores = get_score("moderate").compute(whole(size=41))
    middle = select(scores, 0.3, by="moderate", method="middle", labels=labels).indices
    for label in range(3):
        members = (labels == label).nonzero().squeeze(1)
        ranks = scores[members].argsort().argsort()
        kept = ranks[torch.isin(members, middle)].sort().values
        assert torch.equal(kept, torch.arange(int(kept[0]), int(kept[0]) + len(kept)))
        assert abs(float(kept.double().mean()) - (len(members) - 1) / 2) <= 0.5


def test_bad_options_say_what_to_do():
    with pytest.raises(InputError, match="budget must be at most the number of samples, 40; got 41"):
        get_score("contextual_diversity").compute(whole(), picks=41)
    with pytest.raises(InputError, match="k must be a whole number ≥ 1; got 0"):
        get_score("cal").compute(whole(), k=0)
