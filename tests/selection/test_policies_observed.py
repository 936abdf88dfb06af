"""ScoredSubset with scores from training: what is observed, what a pass adds, and what is refused."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from fastqat._errors import CheckpointError, InputError
from fastqat.methods import ACS
from fastqat.selection import TeacherCache, select

from .policy_runs import CLASSES, SOURCES, N, data, make, net, train


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_observed_scores_are_those_of_the_training_forward_and_only_the_rest_is_passed_over():
    student = net(0)
    policy = make(student, score="loss", score_source="train", interval=2, epochs=4)
    policy.begin_epoch(0)
    assert policy.scoring_forwards == N and not policy.observing
    policy.begin_epoch(1)
    assert policy.observing and not policy.observes_teacher
    chosen = policy.selection.indices
    x, y = data().tensors
    logits = student.train()(x[chosen])
    for part in chosen.split(10):
        at = torch.searchsorted(chosen.sort().values, part)
        at = chosen.sort().indices[at]
        policy.observe(part, logits[at], y[part])
    student.eval()
    policy.begin_epoch(2)
    assert policy.scoring_forwards == N + N - len(chosen)
    torch.testing.assert_close(policy.table["loss"][chosen], F.cross_entropy(logits, y[chosen], reduction="none").detach())
    rest = torch.ones(N, dtype=torch.bool)
    rest[chosen] = False
    torch.testing.assert_close(policy.table["loss"][rest], F.cross_entropy(student(x[rest]), y[rest], reduction="none").detach())
    assert torch.equal(policy.table.labels, y)


def test_scores_that_are_too_old_are_computed_anew():
    for max_age in (1, 2, 3, None):
        policy = make(net(0), score_source="train", max_age=max_age, interval=4, epochs=8, fraction=0.5)
        seen = []
        for epoch in range(4):
            policy.begin_epoch(epoch)
            part = policy.selection.indices[epoch::4]  # another quarter in each epoch
            seen.append(len(part))
            policy.observe(part, torch.randn(len(part), CLASSES), data().tensors[1][part])
        policy.begin_epoch(4)
        assert policy.scoring_forwards == 2 * N - sum(seen[-(max_age or 4) :])


def test_infobatch_from_training_needs_no_pass_and_uses_its_weights():
    student = net(0)
    policy = make(student, **SOURCES["infobatch"])
    log = train(policy, student, range(6))
    assert policy.scoring_forwards == 0
    assert [len(indices) for _, indices, _, _ in log] == [N] + [round(0.8 * N)] * 4 + [N]
    assert [weights is None for _, _, weights, _ in log] == [True] + [False] * 4 + [True]
    kept = [set(indices) for _, indices, _, _ in log[1:5]]
    assert all(a != b for a, b in pairwise(kept)), "another draw in each epoch"


def test_teacher_logits_of_training_are_used_and_asked_for():
    student, teacher = net(0), net(1)
    acs = make(student, ACS, teacher=teacher, score_source="train", schedule="constant")
    acs.begin_epoch(1)
    assert acs.observes_teacher and acs.scoring_forwards == 2 * N
    chosen = acs.selection.indices
    logits, taught = torch.randn(len(chosen), CLASSES), torch.randn(len(chosen), CLASSES)
    with pytest.raises(InputError, match="observe needs teacher_logits= for evs, ds"):
        acs.observe(chosen, logits, data().tensors[1][chosen])
    acs.observe(chosen, logits, data().tensors[1][chosen], taught)
    acs.begin_epoch(2)
    torch.testing.assert_close(acs.table["ds"][chosen], (logits.softmax(1) - taught.softmax(1)).norm(dim=1))
    assert acs.scoring_forwards == 3 * N - len(chosen)


def test_a_teacher_in_memory_serves_a_pass_over_the_rest():
    student = net(0)
    runs = []
    for teacher in (net(1), TeacherCache(net(1).eval()(data().tensors[0]).detach())):
        policy = make(student, score="ds", teacher=teacher, score_source="train")
        policy.begin_epoch(1)
        chosen = policy.selection.indices
        policy.observe(chosen, torch.zeros(len(chosen), CLASSES), None, torch.zeros(len(chosen), CLASSES))  # ds needs no labels
        policy.begin_epoch(2)
        runs.append(policy)
    torch.testing.assert_close(runs[0].table["ds"], runs[1].table["ds"])
    assert float(runs[0].table["ds"][chosen].max()) == 0 and torch.equal(runs[0].table.labels, data().tensors[1])
    assert runs[0].scoring_forwards == 3 * N - len(chosen) == runs[1].scoring_forwards + N


def test_scores_of_a_training_come_from_the_epochs_before():
    student = net(0)
    policy = make(student, score="forgetting", score_source="train", warmup=3, interval=None, fraction=0.2)
    log = train(policy, student, range(5))
    assert [changed for changed, *_ in log] == [True, False, False, True, False]
    assert len(policy.selection) == 24 and policy.scoring_forwards == 0
    assert torch.equal(policy.selection.indices, select(policy.table, 0.2, by="forgetting").indices)


def test_bad_observations_and_states():
    policy = make(net(0), score_source="train", interval=1)
    policy.begin_epoch(0)
    y, logits = torch.zeros(4, dtype=torch.long), torch.zeros(4, CLASSES)
    with pytest.raises(InputError, match=r"one index per sample, \[4\] integers; got torch.int64 \[3\]"):
        policy.observe(torch.arange(3), logits, y)
    with pytest.raises(InputError, match="observe needs targets= for evs"):
        policy.observe(torch.arange(4), logits)
    policy.observe(torch.arange(4) + N, logits, y)
    with pytest.raises(InputError, match="observe got indices from 120 to 123; the data set has 120 samples"):
        policy.begin_epoch(1)
    state, other = (make(net(0), score_source="train", interval=1, **more) for more in ({}, {"method": "middle", "score": "loss"}))
    with pytest.raises(CheckpointError, match=r"saved with method 'topk' \(here 'middle'\), score 'evs'"):
        other.load_state_dict(state.state_dict())


def test_a_policy_that_does_not_observe_takes_anything():
    policy = make(net(0))
    policy.begin_epoch(0)
    assert not policy.observing and not policy.observes_teacher
    assert policy.observe(torch.arange(3), torch.zeros(3, CLASSES)) is None and policy.end_epoch() is None


def test_infobatch_goes_on_where_too_many_scores_are_high():
    """Equal scores are all at the mean: a selection in mid-training must not end the run."""
    policy = make(net(0), **SOURCES["infobatch"])
    policy.begin_epoch(0)
    policy.observe(torch.arange(N), torch.zeros(N, CLASSES), data().tensors[1])
    with pytest.warns(UserWarning, match="draws uniformly from all"):
        policy.begin_epoch(1)
    assert len(policy.selection) == round(0.8 * N) and float(policy.selection.weights.sum()) == pytest.approx(N)
