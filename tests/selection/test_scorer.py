"""score_dataset, the teacher cache and batch-norm statistics."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from fastqat._errors import DataError, InputError
from fastqat.ops.logit_scores.api import logit_scores
from fastqat.selection import TeacherCache, list_scores, reestimate_batch_norm, score_dataset

from .scoring import Counting

CLASSES = 5


def data(size=103, classes=CLASSES):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(size, 8, generator=generator), torch.randint(0, classes, (size,), generator=generator))


def net(seed=0, classes=CLASSES):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))


@pytest.mark.parametrize("batch_size", [1, 10, 103, 1000])
def test_every_score_in_data_set_order_equals_one_batch(batch_size):
    student, teacher, dataset = net(0), net(1), data()
    names = sorted(name for name, score in list_scores().items() if score.stage != "dynamics")
    table = score_dataset(student, dataset, names, teacher=teacher, batch_size=batch_size, beta=0.3)
    x, y = dataset.tensors
    with torch.no_grad():
        want = logit_scores(student.eval()(x), y, teacher.eval()(x))
    assert list(table) == names and torch.equal(table.labels, y)
    for name in set(names) & set(want._fields):
        torch.testing.assert_close(table[name], getattr(want, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table["acs"], 0.3 * table["evs"] + 0.7 * table["ds"])
    assert torch.equal(table["el2n"], table["evs"])


def test_two_passes_have_the_same_bits_and_the_cache_changes_nothing():
    student, dataset = net(0), data()
    cache = TeacherCache(net(1))
    cold = score_dataset(student, dataset, ["evs", "ds", "res"], teacher=cache, batch_size=32)
    warm = score_dataset(student, dataset, ["evs", "ds", "res"], teacher=cache, batch_size=32)
    given = score_dataset(student, dataset, ["evs", "ds", "res"], teacher=cache.logits, batch_size=50)
    for name in cold:
        assert torch.equal(cold[name], warm[name])
        torch.testing.assert_close(cold[name], given[name], rtol=1e-5, atol=1e-6)


def test_the_teacher_runs_once_and_only_when_a_score_needs_it():
    teacher, dataset = Counting(net(1)), data()
    cache = TeacherCache(teacher)
    score_dataset(net(), dataset, ["evs"], teacher=cache)
    assert teacher.samples == 0 and not cache.complete and cache.nbytes == 0
    for _ in range(3):
        score_dataset(net(), dataset, teacher=cache)
    assert teacher.samples == 103 and cache.complete and cache.nbytes == 4 * 103 * CLASSES
    with pytest.raises(InputError, match="logits are of 103 samples, the data set has 20"):
        score_dataset(net(), data(20), teacher=cache)


def test_defaults_are_evs_and_ds_with_a_teacher():
    assert list(score_dataset(net(), data())) == ["evs"]
    assert list(score_dataset(net(), data(), teacher=net(1))) == ["evs", "ds"]
    assert list(score_dataset(net(), data(), "entropy")) == ["entropy"]


def test_a_data_set_with_batches_needs_no_loader_and_workers_change_nothing():
    class Own(Dataset):
        def __len__(self):
            return 103

        def batches(self, batch_size):
            x, y = data().tensors
            return zip(x.split(batch_size), y.split(batch_size), strict=True)

    own = score_dataset(net(), Own(), batch_size=32)
    for workers in (0, 1):
        assert torch.equal(own["evs"], score_dataset(net(), data(), batch_size=32, num_workers=workers)["evs"])


class Boom(nn.Module):
    def forward(self, x):
        raise RuntimeError("boom")


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_statistics_are_put_back_errors_included(fails):
    student, teacher = net(), nn.Sequential(net(1), Boom()) if fails else net(1)
    student.train()
    student[1].eval()
    teacher.train()
    before = [module.training for model in (student, teacher) for module in model.modules()]
    dice = torch.get_rng_state()
    state = {name: value.clone() for name, value in student.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError, match="boom"):
            score_dataset(student, data(), teacher=teacher)
    else:
        score_dataset(student, data(), teacher=teacher)
    assert before == [module.training for model in (student, teacher) for module in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert torch.is_grad_enabled() and torch.equal(dice, torch.get_rng_state())


def test_a_broken_pass_leaves_the_cache_empty_and_the_next_one_right():
    teacher, calls = net(1), [0]

    def forward(model, x):
        calls[0] += model is teacher
        if calls[0] == 2 and model is teacher:
            raise RuntimeError("out of memory")
        return model(x)

    cache = TeacherCache(teacher)
    with pytest.raises(RuntimeError, match="out of memory"):
        score_dataset(net(), data(), teacher=cache, batch_size=40, forward=forward)
    assert not cache.complete
    got = score_dataset(net(), data(), teacher=cache, batch_size=40)
    assert torch.equal(got["ds"], score_dataset(net(), data(), teacher=teacher, batch_size=40)["ds"])


@pytest.mark.parametrize("wrap", [lambda z: (z, "features"), lambda z: [z], lambda z: SimpleNamespace(logits=z)])
def test_logits_come_out_of_tuples_and_objects(wrap):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return wrap(self.inner(x))

    assert torch.equal(score_dataset(Wrapped(), data())["evs"], score_dataset(net(), data())["evs"])
    by_hand = score_dataset(Wrapped(), data(), forward=lambda model, x: model.inner(x))
    assert torch.equal(by_hand["evs"], score_dataset(net(), data())["evs"])


def test_bf16_autocast_works():
    with torch.autocast("cpu", torch.bfloat16):
        table = score_dataset(net(), data(), teacher=net(1))
    full = score_dataset(net(), data(), teacher=net(1))
    assert table["ds"].dtype == torch.float32
    torch.testing.assert_close(table["ds"], full["ds"], atol=0.02, rtol=0)  # bf16 logits carry 8 bits


def test_label_free_scores_need_no_labels():
    unlabelled = TensorDataset(data().tensors[0])
    table = score_dataset(net(), unlabelled, ["ds"], teacher=net(1))
    assert table.labels is None and table["ds"].shape == (103,)
    with pytest.raises(DataError, match="yields no labels, which the requested scores need"):
        score_dataset(net(), unlabelled)
    anything = TensorDataset(data().tensors[0], torch.full((103,), -1))
    assert torch.equal(score_dataset(net(), anything, ["ds"], teacher=net(1))["ds"], table["ds"])


def with_label(value, at=60):
    x, y = data().tensors
    y = y.clone()
    y[at] = value
    return TensorDataset(x, y)


def with_nan(at=42):
    x, y = data().tensors
    x = x.clone()
    x[at, 0] = float("nan")
    return TensorDataset(x, y)


class Liar(TensorDataset):
    def batches(self, batch_size):
        yield self.tensors[0][:5], self.tensors[1][:5]


class Stream(IterableDataset):
    def __init__(self, size=103):
        self.samples = data(size)

    def __iter__(self):
        return iter(self.samples)


BAD = [
    (lambda: score_dataset(net(), data(0)), DataError, "the data set is empty"),
    (lambda: score_dataset(net(), with_label(CLASSES)), DataError, r"1 labels are outside \[0, 5\), the first is 5 at index 60"),
    (lambda: score_dataset(net(), with_label(-1)), DataError, "the first is -1 at index 60"),
    (lambda: score_dataset(net(), with_nan()), InputError, "score 'evs' of 1 samples is NaN, the first at index 42"),
    (lambda: score_dataset(net(), data(), teacher=net(1, 7)), InputError, r"\[103, 7\] and model logits \[103, 5\]"),
    (lambda: score_dataset(net(), data(), teacher=torch.zeros(9, 5)), InputError, "logits are of 9 samples"),
    (lambda: score_dataset(net(), data(), teacher=torch.zeros(9)), InputError, r"must be \[N, C\]"),
    (lambda: score_dataset(net(), data(), ["ds"]), InputError, "score 'ds' compares with a teacher"),
    (lambda: score_dataset(net(), data(), ["best"]), InputError, "unknown score 'best'"),
    (lambda: score_dataset(net(), data(), []), InputError, "scores is empty"),
    (lambda: score_dataset(net(), data(), ["evs"], beta=0.5), InputError, "no requested score takes beta"),
    (lambda: score_dataset(nn.Identity(), TensorDataset(torch.zeros(4), torch.zeros(4).long())), InputError, "must return logits"),
    (lambda: score_dataset(net(), TensorDataset(torch.zeros(4, 8), torch.zeros(4))), DataError, "labels must be integers"),
    (lambda: score_dataset(net(), Liar(*data().tensors)), DataError, "103 samples but yielded 5"),
    (lambda: score_dataset(net(), Stream(), num_workers=2), InputError, "num_workers is 2 for an iterable data set"),
    (lambda: score_dataset(net(), Stream(0)), DataError, "the data set is empty"),
    (lambda: score_dataset(net(), data(), "forgetting"), InputError, "feed a DynamicsRecorder while training"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_input_is_one_line_that_says_what_to_do(call, kind, message):
    with pytest.raises(kind, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_batch_norm_statistics_are_the_average_of_the_batches():
    model = net().train()
    model(torch.randn(64, 8) * 5)
    batches = [torch.randn(32, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    modes = [module.training for module in model.modules()]
    assert reestimate_batch_norm(model, batches) == 96
    hidden = [model[0](batch).detach() for batch in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert modes == [module.training for module in model.modules()] and model[1].momentum == 0.1


def test_batch_norm_statistics_survive_an_error_and_models_without_any_are_left_alone():
    model = net().train()
    model(torch.randn(64, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(model, [torch.randn(32, 8), torch.randn(32, 9)])
    with pytest.raises(InputError, match="give at least one"):
        reestimate_batch_norm(model, [])
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="1 batch norms became NaN or infinite, the first is layer '1'; the old ones are back"):
            reestimate_batch_norm(model, [torch.randn(32, 8), torch.full((32, 8), value), torch.randn(32, 8)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].momentum == 0.1 and model[1].training
    assert reestimate_batch_norm(nn.Linear(8, 2), [torch.randn(4, 8)]) == 0
