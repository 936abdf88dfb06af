"""ScoredSubset: every selector and score through the protocol, scores from training, state, refusals."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastqat._errors import CheckpointError, InputError
from fastqat.methods import ACS
from fastqat.selection import IndexedDataset, ScoredSubset, TeacherCache, list_selectors, score_dataset, select
from fastqat.selection.policies.calendar import Calendar

N, CLASSES = 120, 3
OPTIONS = {
    "infobatch": {"fraction": 0.8, "score": "loss"},
    "stratified": {"options": {"strata": 10, "beta": 0.1}},
    "importance": {"options": {"mix": 0.2}},
    "glister": {"features": "error"},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (N,), generator=generator)
    return TensorDataset(torch.randn(N, 6, generator=generator) + F.one_hot(y, 6), y)


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, CLASSES))


def make(student, kind=ScoredSubset, **options):
    return kind(
        data(), student, options.pop("teacher", None), **{"fraction": 0.3, "epochs": 6, "interval": 2, "progress": False, **options}
    )


def needs_of(method):
    """What a policy with the selector `method` must be given."""
    needs = list_selectors()[method].needs
    given = {"features": "embedding"} if "features" in needs else {}
    return {**given, **({"val_view": data()} if "val_features" in needs else {}), "method": method, **OPTIONS.get(method, {})}


def train(policy, student, epochs, teacher=None, log=None):
    """A plain loop as a user writes it: weights, observation, and a log of what each epoch trained on."""
    log = [] if log is None else log
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    dataset = IndexedDataset(data())
    for epoch in epochs:
        changed = policy.begin_epoch(epoch)
        torch.manual_seed(1000 + epoch)  # dropout
        student.train()
        for x, y, index in DataLoader(dataset, 32, sampler=policy.sampler):
            logits = student(x)
            optimizer.zero_grad()
            (F.cross_entropy(logits, y, reduction="none") * policy.sampler.loss_weights(index)).mean().backward()
            optimizer.step()
            taught = None
            if policy.observes_teacher:
                with torch.no_grad():
                    taught = teacher.eval()(x)
            policy.observe(index, logits, y, taught)
        policy.end_epoch()
        weights = policy.selection.weights
        log.append((changed, policy.selection.indices.tolist(), None if weights is None else weights.tolist(), list(policy.sampler)))
    return log


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


SOURCES = {
    "observed": {"score_source": "train"},
    "observed, of any age, from the start": {"score_source": "train", "max_age": None, "warmup": 1, "interval": 1},
    "infobatch": {
        "score_source": "train",
        "max_age": None,
        "warmup": 1,
        "anneal": 1,
        "interval": 1,
        "fraction": 0.8,
        "method": "infobatch",
    },
    "recorded": {"score": "forgetting", "score_source": "train", "warmup": 2},
    "recorded, with features": {
        "score": "aum",
        "score_source": "train",
        "warmup": 1,
        "interval": 3,
        "method": "k_center",
        "features": "embedding",
    },
    "random first": {"first_select": "random", "balanced": False, "method": "pmf", "score": "correct"},
    "static after a warm-up": {"interval": None, "warmup": 3, "method": "stratified"},
    "against the teacher": {"score": "ds", "score_source": "train", "batch_size": 50},
    "acs": {"kind": ACS, "score_source": "train", "interval": 1, "batch_size": 50},
}
SOURCES = {
    name: options
    for name, options in SOURCES.items()
    if options.get("method", "topk") in list_selectors() and options.get("score") != "correct"
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_resumed_run_with_observed_scores_equals_one_that_never_stopped(name, tmp_path):
    teacher = net(1)

    def start():
        student = net(0)
        return student, make(student, teacher=teacher, **dict(SOURCES[name]))

    check_resume(start, stops=(2, 5), tmp_path=tmp_path, teacher=teacher)


def check_resume(start, stops, tmp_path, teacher=None):
    student, policy = start()
    whole = train(policy, student, range(6), teacher)
    policy.finish()
    for stop in stops:
        first, broken = start()
        log = train(broken, first, range(stop), teacher)
        torch.save({"model": first.state_dict(), "policy": broken.state_dict()}, tmp_path / "state.pt")
        second, resumed = start()
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        second.load_state_dict(state["model"])
        resumed.load_state_dict(state["policy"])
        train(resumed, second, range(stop, 6), teacher, log)
        resumed.finish()
        assert log == whole and resumed.scoring_forwards == policy.scoring_forwards
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in student.state_dict().items())


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


class Augmented(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.randn(6), i % CLASSES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "unknown selector 'best'"),
        ({"method": "random"}, "random needs no scores; use RandomSubset or RS2"),
        ({"score": "best"}, "unknown score 'best'"),
        ({"score": "ds"}, "score 'ds' compares with a teacher; pass teacher="),
        ({"options": {"strata": 3}}, "topk does not take strata; its options: none"),
        ({"method": "stratified", "options": {"strata": 0}}, "strata must be a whole number ≥ 1"),
        ({"method": "stratified", "options": {"beta": 0.9}}, "beta 0.9 leaves"),
        ({"method": "k_center"}, "k_center compares samples by their features; pass features='embedding'"),
        ({"features": "embedding"}, "topk does not look at features"),
        ({"method": "k_center", "features": "fc"}, "features must be embedding, .*got 'fc'"),
        ({"method": "glister", "features": "error"}, "glister matches validation samples; pass val_view="),
        ({"method": "glister", "features": "embedding", "val_view": data()}, "must be p − y of 8 classes; these are not"),
        ({"score_source": "memory"}, "score_source must be 'pass' or 'train'; got 'memory'"),
        ({"first_select": "best"}, "first_select must be 'scores' or 'random'"),
        ({"first_select": "random", "warmup": 1}, "leave out one of them"),
        ({"score_source": "train", "score": "grand_last"}, "score 'grand_last' cannot be taken from the training forward"),
        (
            {"score_source": "train", "method": "k_center", "features": "embedding"},
            "features='embedding' cannot be taken from the training",
        ),
        ({"score": "forgetting"}, "score 'forgetting' is of a whole training; use score_source='train'"),
        ({"score": "misses", "score_source": "train", "warmup": 1}, "bits="),
        ({"interval": 0}, "interval must be a whole number ≥ 1; got 0"),
        ({"warmup": -1}, "warmup must be a whole number ≥ 0; got -1"),
        ({"warmup": None}, "warmup must be a whole number ≥ 0; got None"),
        ({"max_age": 0}, "max_age must be a whole number ≥ 1; got 0"),
        ({"anneal": 2, "epochs": None}, "anneal counts from the end; pass epochs="),
        ({"anneal": 3, "warmup": 3}, "leave none of 6 epochs for a selection"),
        ({"batch_size": 0}, "batch_size must be a whole number ≥ 1"),
        ({"batchsize": 10}, "neither a scoring pass nor the score takes batchsize; a pass takes batch_size"),
        ({"fraction": 0.001}, "leaves class"),
        ({"fraction": 0.001, "balanced": False}, "selects none"),
        ({"dataset": Augmented()}, "two reads of sample 0 of Augmented differ"),
        ({"student": "resnet"}, "student must be the quantized model"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_training(options, message):
    if options.get("method") in ("k_center", "glister") and options["method"] not in list_selectors():
        pytest.skip("the selector is not there")
    given = {"dataset": data(), "student": net(0), "fraction": 0.3, "epochs": 6, "interval": 2, **options}
    with pytest.raises(InputError, match=message) as error:
        ScoredSubset(**given)
    assert "\n" not in str(error.value)


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
