"""A scorer of the user's own in place of `score_dataset`: called with what the selection needs, checked, counted, resumed."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fastqat._errors import CheckpointError, InputError
from fastqat.methods import ACS
from fastqat.selection import ScoredSubset, ScoreTable

N = 30


class Scorer:
    """Scores that differ by name, the calls kept."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, dataset, scores, *, teacher=None, batch_size=4, shift=0):
        self.calls.append((model, dataset, list(scores), teacher, batch_size, shift))
        columns = {"evs": torch.arange(float(N)), "ds": -torch.arange(float(N))}
        return ScoreTable({name: columns[name].roll(shift) for name in scores}, torch.arange(N) % 2)


def make(kind=ACS, scorer=None, **options):
    data, models = TensorDataset(torch.randn(N, 3), torch.arange(N) % 2), (nn.Linear(3, 2), nn.Linear(3, 2))
    given = {"epochs": 4, "interval": 1, "fraction": 0.2, **options}
    return kind(data, *models, scorer=Scorer() if scorer is None else scorer, **given), data, models


def test_it_is_given_the_models_the_view_and_its_options():
    scorer = Scorer()
    acs, data, (student, teacher) = make(scorer=scorer, batch_size=7, shift=2)
    acs.begin_epoch(0)
    acs.begin_epoch(2)
    assert scorer.calls == [(student, data, ["evs"], None, 7, 2), (student, data, ["evs", "ds"], teacher, 7, 2)]
    assert acs.scoring_forwards == N + 2 * N


def test_acs_blends_and_selects_by_its_scores():
    acs, _, _ = make(schedule="constant", balanced=False, first_select="scores")
    acs.begin_epoch(0)
    torch.testing.assert_close(acs.table["acs"], torch.zeros(N))
    acs, _, _ = make(schedule=lambda t, e: 1.0)
    acs.begin_epoch(0)
    assert acs.selection.indices.tolist() == [29, 28, 27, 26, 25, 24]  # three of each label
    one, _, _ = make(ScoredSubset, score="ds", method="bottomk", balanced=False, options=None)
    one.begin_epoch(0)
    assert set(one.selection.indices.tolist()) == set(range(24, 30))


def test_the_teacher_may_be_anything_that_the_scorer_takes():
    scorer = Scorer()
    data, teacher = TensorDataset(torch.randn(N, 3), torch.arange(N) % 2), object()
    ScoredSubset(data, nn.Linear(3, 2), teacher, score="ds", scorer=scorer).begin_epoch(0)
    assert scorer.calls[0][3] is teacher


def test_it_goes_on_where_it_was_saved_and_only_with_the_same_scorer():
    first, _, _ = make()
    first.begin_epoch(0)
    second, _, _ = make()
    second.load_state_dict(first.state_dict())
    assert second.begin_epoch(1) and second.scoring_forwards == 3 * N
    with pytest.raises(CheckpointError, match="scorer"):
        make(scorer=lambda model, dataset, scores, teacher=None: None)[0].load_state_dict(first.state_dict())


def test_policies_without_one_have_the_state_they_had():
    data = TensorDataset(torch.randn(N, 3), torch.arange(N) % 2)
    assert "scorer" not in ScoredSubset(data, nn.Linear(3, 2)).state_dict()["settings"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"score_source": "train"}, "score_source='train'"),
        ({"features": "embedding", "kind": ScoredSubset, "method": "k_center"}, "features='embedding'"),
        ({"num_classes": 3}, "num_classes"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_it_cannot_do_is_refused_at_once(options, told):
    with pytest.raises(InputError, match=told):
        make(**options)


@pytest.mark.parametrize(
    "table",
    [None, ScoreTable({"evs": torch.zeros(N - 1)}), ScoreTable({"ds": torch.zeros(N)})],
    ids=["nothing", "another length", "another score"],
)
def test_what_it_returns_is_checked(table):
    acs, _, _ = make(scorer=lambda model, dataset, scores, teacher=None: table)
    with pytest.raises(InputError, match="must return a ScoreTable of 30 samples with the scores evs"):
        acs.begin_epoch(0)


def test_without_a_teacher_a_score_that_compares_is_refused():
    data = TensorDataset(torch.randn(N, 3), torch.arange(N) % 2)
    with pytest.raises(InputError, match="compares with a teacher"):
        ScoredSubset(data, nn.Linear(3, 2), score="ds", scorer=Scorer())
