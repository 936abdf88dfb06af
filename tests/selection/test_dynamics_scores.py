"""Scores that public code is known to get wrong, averages over models, and the blend of QuaRC."""

import math

import pytest
import torch
from torch.utils.data import TensorDataset

from fastqat._errors import InputError
from fastqat.ops.logit_scores.api import logit_scores
from fastqat.selection import (
    Dynamics,
    DynamicsRecorder,
    ScoreTable,
    Transitions,
    average_scores,
    get_score,
    list_scores,
    score_dataset,
    select,
)
from fastqat.selection.scores.quarc import blend, normalized


def transitions(seen, right, lost):
    return Transitions(*(torch.tensor(values) for values in (seen, right, lost)))


def test_el2n_is_of_probabilities_and_of_the_model_s_own_classes():
    """Not of raw logits, and not with a fixed number of classes: doubling and shifting the logits must matter as the softmax says."""
    logits = torch.tensor([[4.0, 0.0, -1.0]], dtype=torch.float64)
    p = logits.softmax(1)
    want = (p - torch.tensor([1.0, 0.0, 0.0])).norm()
    recorder = DynamicsRecorder(1)
    recorder.update(torch.tensor([0]), logits, torch.tensor([0]))
    assert recorder.table("el2n")["el2n"].item() == pytest.approx(want.item(), rel=1e-6)
    assert (logits - torch.tensor([1.0, 0.0, 0.0])).norm() > 3 * want
    shifted = DynamicsRecorder(1)
    shifted.update(torch.tensor([0]), logits + 7, torch.tensor([0]))
    assert shifted.table("el2n")["el2n"].item() == pytest.approx(want.item(), rel=1e-6)


def test_aum_is_of_raw_logits():
    logits = torch.tensor([[4.0, 0.0, -1.0], [1.0, 3.0, 2.5]])
    recorder = DynamicsRecorder(2)
    recorder.update(torch.arange(2), logits, torch.tensor([0, 2]))
    recorder.update(torch.arange(2), 2 * logits, torch.tensor([0, 2]))
    assert recorder.table("aum")["aum"].tolist() == [6.0, -0.75]


def test_never_right_is_above_every_count_of_losses_and_is_kept_first():
    """In public code a sample that was never right has no losses and so comes last."""
    training = transitions([5, 5, 5], [0, 5, 3], [0, 0, 2])
    dynamics = Dynamics(training, *[None] * 5, {2: training, 4: transitions([3, 3, 3], [3, 0, 2], [0, 0, 1])})
    forgetting = get_score("forgetting").compute(dynamics)
    assert forgetting.tolist() == [5, 0, 2]
    assert get_score("misses").compute(dynamics).tolist() == [5, 3, 3]
    assert select(ScoreTable({"forgetting": forgetting}), 0.34).indices.tolist() == [0]


def test_directions_keep_the_hard_and_the_ambiguous():
    scores = list_scores()
    ends = {"aum": "smallest", "label_confidence": "smallest", "deepfool": "smallest"}
    ends |= dict.fromkeys(("forgetting", "misses", "variability", "quarc"), "largest")
    assert {name: scores[name].direction for name in ends} == ends


def test_a_score_of_dynamics_is_not_one_of_logits():
    with pytest.raises(InputError, match="score 'aum' needs targets and dynamics; feed a DynamicsRecorder"):
        get_score("aum")(logit_scores(torch.zeros(2, 3), torch.tensor([0, 1])))


def test_el2n_averages_over_models():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(40, 5), torch.arange(40) % 3)
    models = [torch.nn.Linear(5, 3) for _ in range(4)]
    tables = [score_dataset(model, data, ["el2n", "loss"], progress=False) for model in models]
    x, y = data.tensors
    with torch.no_grad():
        norms = [(model(x).double().softmax(1) - torch.nn.functional.one_hot(y, 3)).norm(dim=1) for model in models]
    mean = average_scores(tables)
    torch.testing.assert_close(mean["el2n"], torch.stack(norms).mean(0).float())
    assert list(mean) == ["el2n", "loss"] and torch.equal(mean.labels, y)
    assert all(torch.equal(average_scores(tables[:1])[name], tables[0][name]) for name in mean)


def test_average_refuses_tables_of_other_samples():
    table = ScoreTable({"evs": torch.rand(3)}, labels=torch.tensor([0, 1, 2]))
    for other in (ScoreTable({"ds": torch.rand(3)}), ScoreTable({"evs": torch.rand(4)})):
        with pytest.raises(InputError, match="same scores and samples"):
            average_scores([table, other])
    with pytest.raises(InputError, match="different labels"):
        average_scores([table, ScoreTable({"evs": torch.rand(3)}, labels=torch.tensor([0, 1, 1]))])
    with pytest.raises(InputError, match="at least one table"):
        average_scores([])


def quarc_by_hand(logits, teacher, y, alpha):
    p, t = (row.double().softmax(0).tolist() for row in (logits, teacher))
    evs = math.sqrt(sum((v - (j == y)) ** 2 for j, v in enumerate(p)))
    ds = math.sqrt(sum((v - w) ** 2 for v, w in zip(p, t, strict=True)))
    return alpha * evs + (1 - alpha) * ds + sum(v * math.log(v / w) for v, w in zip(p, t, strict=True))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_quarc_is_its_formula(alpha):
    generator = torch.Generator().manual_seed(1)
    logits, teacher = (2 * torch.randn(30, 5, generator=generator) for _ in range(2))
    targets = torch.randint(5, (30,), generator=generator)
    got = get_score("quarc")(logit_scores(logits, targets, teacher), alpha=alpha)
    want = [quarc_by_hand(z, t, y, alpha) for z, t, y in zip(logits, teacher, targets.tolist(), strict=True)]
    torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_terms_of_quarc_have_their_own_weights():
    """evs alone where the disagreement is 0, the other way round with α turned: the two are not exchanged."""
    evs, ds, res = torch.tensor([1.0]), torch.tensor([10.0]), torch.tensor([100.0])
    assert blend(evs, ds, res, 1.0).item() == 101 and blend(evs, ds, res, 0.0).item() == 110
    assert blend(None, ds, res, 0.0).item() == 110 and blend(evs, None, res, 1.0).item() == 101
    with pytest.raises(InputError, match="one of them is missing"):
        blend(None, ds, res, 0.5)
    with pytest.raises(InputError, match=r"beta must be in \[0, 1\]"):
        blend(evs, ds, res, 1.5)


def test_normalized_terms():
    values = torch.tensor([3.0, 1.0, 3.0, 100.0, 2.0])
    assert torch.equal(normalized(values, "none"), values)
    assert normalized(values, "rank").tolist() == [0.625, 0.0, 0.625, 1.0, 0.25]
    z = normalized(values, "zscore").double()
    torch.testing.assert_close(z, (values.double() - 21.8) / values.double().std(correction=0), rtol=1e-6, atol=1e-6)
    for how in ("rank", "zscore"):
        assert normalized(torch.full((3,), 0.1), how).unique().numel() == 1
    assert normalized(torch.full((3,), 0.1), "zscore").tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="normalize must be one of none, rank, zscore; got 'log'"):
        normalized(values, "log")


def test_a_large_res_does_not_drown_the_others_when_ranked():
    evs, ds, res = torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0.1, 0.9, 0.5]), torch.tensor([40.0, 0.2, 0.1])
    assert blend(evs, ds, res, 0.5).argmax() == 0 and blend(evs, ds, res, 0.5, "rank").argmax() == 1
