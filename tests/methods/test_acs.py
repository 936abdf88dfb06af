"""ACS against its definition, and the defects of the released code that must not come back."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastqat._errors import CalibrationError, CheckpointError, DataError, InputError
from fastqat.methods import ACS
from fastqat.nn.calibration import calibrate
from fastqat.nn.convert import quantize
from fastqat.selection import TeacherCache

N, CLASSES = 240, 4


def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (N,), generator=generator)
    return TensorDataset(torch.randn(N, 6, generator=generator) + F.one_hot(y, 6), y)


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, CLASSES))


def train(acs, student, dataset, epochs, log):
    """A plain loop as a user writes it; logs what each epoch trained on."""
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for epoch in epochs:
        changed = acs.begin_epoch(epoch)
        torch.manual_seed(1000 + epoch)  # dropout
        student.train()
        for x, y in DataLoader(dataset, 16, sampler=acs.sampler):
            optimizer.zero_grad()
            F.cross_entropy(student(x), y).backward()
            optimizer.step()
        log.append((changed, acs.selection.indices.tolist(), list(acs.sampler)))
    return log


def oracle(student, teacher, dataset, beta, fraction):
    """d_ACS in fp64 and the largest round(fraction * n_c) of each class, in loops."""
    x, y = dataset.tensors
    p, t = (model.double().eval()(x.double()).softmax(1).detach() for model in (student, teacher))
    scores = [beta * float((p[i] - F.one_hot(y[i], CLASSES)).norm()) + (1 - beta) * float((p[i] - t[i]).norm()) for i in range(N)]
    kept = []
    for label in range(CLASSES):
        members = [i for i in range(N) if y[i] == label]
        kept += sorted(members, key=lambda i: (-scores[i], i))[: round(fraction * len(members))]
    return scores, sorted(kept, key=lambda i: -scores[i])


@pytest.mark.parametrize("epoch", [0, 4, 8])
def test_the_selection_is_that_of_the_paper(epoch):
    dataset, student, teacher = data(), net(0), net(1)
    acs = ACS(dataset, student, teacher, fraction=0.2, epochs=10, interval=4)
    assert acs.begin_epoch(epoch) is True
    beta = math.cos(math.pi * epoch / 20)
    assert acs.beta(epoch) == pytest.approx(beta)
    scores, kept = oracle(student, teacher, dataset, beta, 0.2)
    assert acs.selection.indices.tolist() == kept
    torch.testing.assert_close(acs.table["acs"].double(), torch.tensor(scores, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert set(acs.sampler) == set(kept)


def test_only_the_scores_that_beta_needs_are_computed():
    names = {}
    for schedule in (lambda t, e: 1.0, lambda t, e: 0.0, "constant"):
        acs = ACS(data(), net(0), net(1), epochs=2, schedule=schedule)
        acs.begin_epoch(0)
        names[acs.beta(0)] = (list(acs.table), acs.scoring_forwards)
    assert names == {1.0: (["evs", "acs"], N), 0.0: (["ds", "acs"], 2 * N), 0.5: (["evs", "ds", "acs"], 2 * N)}
    alone = ACS(data(), net(0), epochs=2, schedule=lambda t, e: 1.0)
    assert alone.begin_epoch(0) and list(alone.table) == ["evs", "acs"]


def test_it_reselects_every_interval_and_the_teacher_runs_once():
    calls = []
    teacher = net(1)
    teacher.register_forward_hook(lambda module, x, y: calls.append(len(y)))
    acs = ACS(data(), net(0), teacher, epochs=9, interval=3, batch_size=100)
    assert [acs.begin_epoch(epoch) for epoch in range(9)] == [True, False, False] * 3
    assert sum(calls) == N and acs.scoring_forwards == 4 * N
    assert acs.selection_seconds > 0
    assert acs.begin_epoch(4) is False


def test_a_dropped_sample_can_return():
    dataset, student = data(), net(0)
    acs = ACS(dataset, student, net(1), fraction=0.1, epochs=6, interval=1)
    log = train(acs, student, dataset, range(6), [])
    kept = [set(indices) for _, indices, _ in log]
    assert any((kept[b] - kept[b - 1]) & set.union(*kept[: b - 1]) for b in range(2, 6))


def test_two_equal_runs_have_the_same_bits():
    runs = []
    for _ in range(2):
        dataset, student = data(), net(0)
        acs = ACS(dataset, student, net(1), epochs=4, interval=2, bn_reestimate=1, first_select="random", batch_size=64)
        runs.append((train(acs, student, dataset, range(4), []), acs.table["acs"], student.state_dict()))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert all(torch.equal(value, runs[1][2][name]) for name, value in runs[0][2].items())


@pytest.mark.parametrize("options", [{}, {"bn_reestimate": 2, "first_select": "random", "balanced": False}])
@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_run_equals_one_that_never_stopped(stop, options, tmp_path):
    def start():
        student = net(0)
        return student, ACS(data(), student, net(1), epochs=8, interval=3, batch_size=64, seed=3, **options)

    student, acs = start()
    whole = train(acs, student, data(), range(8), [])
    acs.finish()
    first, broken = start()
    log = train(broken, first, data(), range(stop), [])
    torch.save({"model": first.state_dict(), "acs": broken.state_dict()}, tmp_path / "state.pt")
    second, resumed = start()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(state["model"])
    resumed.load_state_dict(state["acs"])
    assert resumed.table is None or torch.equal(resumed.table["acs"], broken.table["acs"])
    train(resumed, second, data(), range(stop, 8), log)
    resumed.finish()
    assert log == whole and resumed.scoring_forwards == acs.scoring_forwards
    assert torch.equal(resumed.table["acs"], acs.table["acs"]) and torch.equal(resumed.table.labels, acs.table.labels)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in student.state_dict().items())


def test_first_select_random_costs_no_pass_and_the_next_one_scores():
    acs = ACS(data(), net(0), net(1), epochs=4, interval=2, fraction=0.25, first_select="random")
    y = data().tensors[1]
    assert acs.begin_epoch(0) and acs.table is None and acs.scoring_forwards == 0
    assert y[acs.selection.indices].bincount().tolist() == [round(0.25 * int(n)) for n in y.bincount()]
    drawn = set(acs.selection.indices.tolist())
    assert acs.begin_epoch(2) and acs.table is not None and set(acs.selection.indices.tolist()) != drawn


@pytest.mark.parametrize("balanced", [True, False])
def test_balance(balanced):
    y = data().tensors[1]
    acs = ACS(data(), net(0), net(1), epochs=1, fraction=0.1, balanced=balanced)
    acs.begin_epoch(0)
    want = [round(0.1 * int(n)) for n in y.bincount()]
    got = y[acs.selection.indices].bincount(minlength=CLASSES).tolist()
    assert got == want if balanced else (sum(got) == 24 and got != want)


def test_bn_reestimate_uses_plain_random_batches_and_finish_repeats_it():
    dataset, student = data(), net(0)
    acs = ACS(dataset, student, net(1), epochs=2, bn_reestimate=3, batch_size=80, schedule=lambda t, e: 1.0)
    acs.begin_epoch(0)
    assert acs.scoring_forwards == 2 * N
    hidden = student[0](dataset.tensors[0]).detach()
    torch.testing.assert_close(student[1].running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
    student.train()(dataset.tensors[0][acs.selection.indices])
    skewed = student[1].running_mean.clone()
    acs.finish()
    torch.testing.assert_close(student[1].running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.equal(skewed, student[1].running_mean) and acs.scoring_forwards == 3 * N
    untouched = ACS(dataset, student, net(1), epochs=2)
    before = student[1].running_mean.clone()
    untouched.begin_epoch(0)
    untouched.finish()
    assert torch.equal(before, student[1].running_mean)


class Augmented(Dataset):
    """Noise on every read, as an augmentation does; `transform` says so."""

    def __init__(self):
        self.plain, self.transform, self.targets = data(), lambda x: x + torch.randn_like(x), data().tensors[1]

    def __len__(self):
        return N

    def __getitem__(self, i):
        x, y = self.plain[i]
        return self.transform(x), y


def test_scores_come_from_the_plain_view():
    with pytest.raises(InputError, match="applies <lambda>, which may augment at random; pass score_view="):
        ACS(Augmented(), net(0), net(1), epochs=2)
    acs, plain = (ACS(dataset, net(0), net(1), epochs=2, score_view=data()) for dataset in (Augmented(), data()))
    acs.begin_epoch(0)
    plain.begin_epoch(0)
    assert torch.equal(acs.table["acs"], plain.table["acs"])


def test_a_data_set_that_hides_its_augmentation_is_refused():
    class Hidden(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return torch.randn(6), i % CLASSES

    with pytest.raises(InputError, match="two reads of sample 0 of Hidden differ"):
        ACS(Hidden(), net(0), net(1), epochs=2)
    assert ACS(Hidden(), net(0), net(1), epochs=2, score_view=data()).begin_epoch(0)


def short():
    x, y = data().tensors
    return TensorDataset(x[:10], y[:10])


def reordered():
    x, y = data().tensors
    return TensorDataset(x.flip(0), y.flip(0))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"fraction": 0.0}, InputError, "fraction must be in"),
        ({"fraction": 1.1}, InputError, "fraction must be in"),
        ({"fraction": 0.001}, InputError, r"leaves class \d \(\d+ samples\) empty; use fraction ≥"),
        ({"fraction": 0.001, "balanced": False}, InputError, "selects none"),
        ({"interval": 0}, InputError, "interval must be a whole number ≥ 1; got 0"),
        ({"epochs": 0}, InputError, "epochs must be a whole number ≥ 1; got 0"),
        ({"bn_reestimate": -1}, InputError, "bn_reestimate must be a whole number ≥ 0; got -1"),
        ({"fraction": "0.1"}, InputError, r"fraction must be a number in \(0, 1\]; got str '0.1'"),
        ({"interval": 2.5}, InputError, "interval must be a whole number ≥ 1; got 2.5"),
        ({"epochs": "20"}, InputError, "epochs must be a whole number ≥ 1; got '20'"),
        ({"batch_size": 0}, InputError, "batch_size must be a whole number ≥ 1; got 0"),
        ({"seed": 1.5}, InputError, "seed must be a whole number ≥ 0; got 1.5"),
        ({"student": "resnet"}, InputError, "student must be the quantized model, .*; got str"),
        ({"teacher": "resnet"}, InputError, "teacher must be a module, .*; got str"),
        ({"schedule": 3}, InputError, "unknown schedule 3"),
        ({"schedule": "exp"}, InputError, "unknown schedule 'exp'"),
        ({"first_select": "best"}, InputError, "first_select must be 'scores' or 'random'"),
        ({"teacher": None}, InputError, "pass teacher="),
        ({"score_view": short()}, InputError, "it has 10, the data set 240"),
        ({"score_view": reordered()}, InputError, "same order"),
        ({"dataset": TensorDataset(torch.zeros(0, 6), torch.zeros(0).long())}, DataError, "the data set is empty"),
    ],
)
def test_bad_input_is_refused_before_training(options, kind, message):
    arguments = {"dataset": data(), "student": net(0), "teacher": net(1), "epochs": 20, **options}
    with pytest.raises(kind, match=message) as error:
        ACS(**arguments)
    assert "\n" not in str(error.value)


def test_bad_input_during_training():
    acs = ACS(data(), net(0), net(1), epochs=4)
    with pytest.raises(InputError, match=r"epoch must be in \[0, 4\); got 4"):
        acs.begin_epoch(4)
    x, y = data().tensors
    with pytest.raises(DataError, match=r"labels are outside \[0, 4\), the first is 9 at index 7"):
        ACS(TensorDataset(x, y.index_fill(0, torch.arange(7, 20), 9)), net(0), net(1), epochs=4).begin_epoch(0)
    bad = net(0)
    nn.init.constant_(bad[4].bias, float("nan"))
    with pytest.raises(InputError, match="score 'evs' of 240 samples is NaN, the first at index 0"):
        ACS(data(), bad, net(1), epochs=4).begin_epoch(0)
    with pytest.raises(CheckpointError, match=r"saved with fraction 0.1 \(here 0.5\)"):
        ACS(data(), net(0), net(1), epochs=4, fraction=0.5).load_state_dict(acs.state_dict())


def test_a_teacher_cache_is_shared_between_runs():
    cache = TeacherCache(net(1))
    runs = [ACS(data(), net(0), cache, epochs=2, schedule="constant") for _ in range(2)]
    for acs in runs:
        acs.begin_epoch(0)
    assert runs[0].scoring_forwards == 2 * N and runs[1].scoring_forwards == N
    assert torch.equal(runs[0].table["acs"], runs[1].table["acs"])


def test_an_uncalibrated_student_is_refused_and_put_back_then_scored_once_calibrated():
    teacher = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    student = quantize(teacher, "w4a4").train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    acs = ACS(data(), student, teacher, epochs=2, bn_reestimate=1, schedule="constant")
    with pytest.raises(CalibrationError, match="call fastqat"):
        acs.begin_epoch(0)
    assert student.training and all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert acs.selection is None and acs.scoring_forwards == 0
    calibrate(student, [data().tensors[0]])
    assert acs.begin_epoch(0) and len(acs.selection) == 24
    assert acs.table["ds"].min() >= 0 and acs.table["ds"].max() > 0
