"""ScoredSubset: every selector and score through the protocol, the calendar, and runs that are resumed."""

import pytest
import torch

from fastqat.selection import list_selectors, score_dataset, select
from fastqat.selection.policies.calendar import Calendar

from .policy_runs import CLASSES, SOURCES, N, check_resume, data, make, needs_of, net


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SELECTORS = sorted(name for name, selector in list_selectors().items() if selector.needs)


@pytest.mark.parametrize("method", SELECTORS)
def test_every_selector_selects_as_select_does(method):
    student = net(0)
    policy = make(student, **needs_of(method))
    assert policy.begin_epoch(0) and not policy.begin_epoch(1)
    settings = needs_of(method)
    score, features = settings.get("score", "evs"), settings.get("features")
    table = score_dataset(student, data(), [score], features=features)
    given = {} if "val_view" not in settings else {"val_features": score_dataset(student, data(), ["evs"], features=features).features}
    generator = torch.Generator().set_state(policy_generator(0).get_state())
    fraction, options = settings.get("fraction", 0.3), settings.get("options", {})
    want = select(table, fraction, method=method, by=score, generator=generator, **given, **options)
    assert torch.equal(policy.selection.indices, want.indices)
    assert want.weights is None or torch.equal(policy.selection.weights, want.weights)
    assert policy.scoring_forwards == N * (2 if given else 1) and policy.table.features is None


def policy_generator(epoch):
    from fastqat.selection.seeding import Stream, generator_for

    return generator_for(0, Stream.SELECT, epoch)


@pytest.mark.parametrize("method", SELECTORS)
def test_a_resumed_run_equals_one_that_never_stopped(method, tmp_path):
    def start():
        student = net(0)
        return student, make(student, bn_reestimate=1, batch_size=32, **needs_of(method))

    check_resume(start, stops=(3,), tmp_path=tmp_path)


@pytest.mark.parametrize("name", SOURCES)
def test_a_resumed_run_with_observed_scores_equals_one_that_never_stopped(name, tmp_path):
    teacher = net(1)

    def start():
        student = net(0)
        return student, make(student, teacher=teacher, **dict(SOURCES[name]))

    check_resume(start, stops=(2, 5), tmp_path=tmp_path, teacher=teacher)


def test_the_calendar():
    def days(**settings):
        calendar = Calendar(**settings)
        found = [epoch for epoch in range(8) if calendar.due(epoch)]
        whole = [epoch for epoch in range(8) if calendar.whole(epoch)]
        return found, whole, [calendar.next_selection(epoch) for epoch in range(8)]

    assert days(interval=3) == ([0, 3, 6], [], [3, 3, 3, 6, 6, 6, 9, 9])
    assert days(interval=3, epochs=8) == ([0, 3, 6], [], [3, 3, 3, 6, 6, 6, None, None])
    assert days(interval=None) == ([0], [], [None] * 8)
    assert days(interval=None, warmup=2) == ([2], [0, 1], [2, 2] + [None] * 6)
    assert days(interval=2, epochs=8, warmup=1, anneal=2) == ([1, 3, 5, 6], [0, 6, 7], [1, 3, 3, 5, 5, None, None, None])
    assert Calendar(4, 12, 2).selections() == [2, 6, 10] and Calendar(4).selections() == [0, 4] and Calendar(None).selections() == [0]


def test_glister_takes_the_number_of_classes_from_the_model():
    picks = []
    for options in ({}, {"classes": CLASSES}, {"classes": None}):
        policy = make(net(0), method="glister", features="gradient", val_view=data(), options=options)
        policy.begin_epoch(0)
        picks.append(policy.selection.indices)
    assert torch.equal(picks[0], picks[1]) and torch.equal(picks[0], picks[2])
