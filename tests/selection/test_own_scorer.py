"""A scorer of the user's own in place of `score_dataset`: called with what the selection needs, checked, counted, resumed."""

import functools

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


def test_what_the_policy_was_not_given_keeps_the_scorers_own_default():
    scorer = Scorer()
    make(scorer=scorer)[0].begin_epoch(0)
    make(scorer=functools.partial(scorer, batch_size=3), shift=1)[0].begin_epoch(0)
    make(scorer=functools.partial(scorer, batch_size=3), batch_size=5)[0].begin_epoch(0)
    assert [call[4:] for call in scorer.calls] == [(4, 0), (3, 1), (5, 0)]


def test_a_scorer_of_any_options_gets_those_that_were_given():
    seen = {}

    def scorer(model, dataset, scores, *, teacher=None, **options):
        seen.update(options)
        return ScoreTable({name: torch.arange(float(N)) for name in scores})

    make(scorer=scorer, temperature=2.0)[0].begin_epoch(0)
    assert seen == {"temperature": 2.0}


def test_labels_of_the_view_balance_scores_without_labels():
    scorer = Scorer()
    acs, data, _ = make(scorer=lambda *a, **k: ScoreTable(dict(scorer(*a, **k))), schedule=lambda t, e: 1.0)
    acs.begin_epoch(0)
    assert acs.selection.indices.tolist() == [29, 28, 27, 26, 25, 24] and data.tensors[1][acs.selection.indices].sum() == 3


def test_balanced_classes_without_labels_are_refused_before_any_pass():
    scorer, models = Scorer(), (nn.Linear(3, 2), nn.Linear(3, 2))
    with pytest.raises(InputError, match="carry no labels; pass balanced=False"):
        ACS(torch.zeros(N, 3), *models, epochs=4, scorer=scorer)
    ACS(torch.zeros(N, 3), *models, epochs=4, scorer=scorer, balanced=False).begin_epoch(0)
    assert len(scorer.calls) == 1


class Pictures:
    """Pictures of several sizes, which come in lists."""

    def __len__(self):
        return N

    def batches(self, batch_size, indices=None):
        order = torch.arange(N) if indices is None else indices
        for part in order.split(batch_size):
            yield [torch.randn(3, 4 + int(i) % 2, 4) for i in part], [None] * len(part)


class OfPictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pictures):
        return [self.norm(picture[None]) for picture in pictures]


def test_batch_norm_is_estimated_from_batches_of_the_scorers_size_and_each_picture_counts_once():
    student = OfPictures()
    options = {"epochs": 4, "interval": 1, "scorer": Scorer(), "balanced": False, "bn_reestimate": 3}
    acs = ACS(Pictures(), student, OfPictures(), score_view=Pictures(), fraction=0.2, **options)
    acs.begin_epoch(0)
    assert student.norm.num_batches_tracked == 3 * 4 and acs.scoring_forwards == N + 3 * 4


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


def test_what_a_partial_binds_is_part_of_its_name():
    def scorer(model, dataset, scores, *, teacher=None, shift=0, other=None):
        return ScoreTable({name: torch.arange(float(N)).roll(shift) for name in scores})

    first = make(scorer=functools.partial(scorer, shift=1, other=object()), balanced=False)[0]
    first.begin_epoch(0)
    make(scorer=functools.partial(scorer, other=object(), shift=1), balanced=False)[0].load_state_dict(first.state_dict())
    with pytest.raises(CheckpointError, match="shift=1"):
        make(scorer=functools.partial(scorer, shift=2), balanced=False)[0].load_state_dict(first.state_dict())


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
        ({"scorer": 3}, r"scorer must be a function of \(model, dataset, scores"),
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
