"""QuaRC: the selection against its definition, the loss, and a run that is resumed."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import fastqat as fq
from fastqat._distributed import gather_objects, world
from fastqat._errors import CheckpointError, InputError
from fastqat._torchrun import started
from fastqat.methods import CascadedCorrection, QuaRC, QuaRCSubset
from fastqat.selection import TeacherCache
from tests.processes import Ranks

from .quarc_nets import CLASSES, Net, gradients, inputs

pytestmark = pytest.mark.usefixtures("one_thread")
N = 120


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(N, 2, 5, 3, generator=generator), torch.arange(N) % CLASSES)


def normalized(values: list[float], how: str) -> list[float]:
    if how == "rank":
        return [sum(other < value for other in values) / (len(values) - 1) for value in values]
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) if how == "zscore" else 1.0
    return [(value - mean) / spread if how == "zscore" else value for value in values]


@pytest.mark.parametrize("normalize", ["none", "rank", "zscore"])
@pytest.mark.parametrize("epoch", [0, 4, 8])
def test_the_selection_is_that_of_the_definition(epoch, normalize):
    student, teacher, (x, y) = Net(0), Net(1), data().tensors
    quarc = QuaRCSubset(data(), student, teacher, fraction=0.1, epochs=10, interval=4, normalize=normalize)
    assert quarc.begin_epoch(epoch) is True
    alpha = math.cos(math.pi * epoch / 20)
    assert quarc.beta(epoch) == pytest.approx(alpha)
    p, t = (model.double().eval()(x.double()).softmax(1).detach() for model in (student, teacher))
    terms = [
        [float((p[i] - F.one_hot(y[i], CLASSES)).norm()) for i in range(N)],
        [float((p[i] - t[i]).norm()) for i in range(N)],
        [float((p[i] * (p[i] / t[i]).log()).sum()) for i in range(N)],
    ]
    for name, values in zip(("evs", "ds", "res"), terms, strict=True):
        torch.testing.assert_close(quarc.table[name].double(), torch.tensor(values).double(), rtol=1e-4, atol=1e-6)
    evs, ds, res = (normalized(values, normalize) for values in terms)
    scores = torch.tensor([alpha * evs[i] + (1 - alpha) * ds[i] + res[i] for i in range(N)])
    torch.testing.assert_close(quarc.table["quarc"], scores, rtol=1e-3, atol=1e-4)
    kept = [i for label in range(CLASSES) for i in sorted(range(label, N, CLASSES), key=lambda i: (-float(scores[i]), i))[:2]]
    assert sorted(quarc.selection.indices.tolist()) == sorted(kept)


def test_defaults_are_the_papers():
    quarc = QuaRC(data(), Net(0), Net(1), epochs=200, balanced=False)
    assert quarc.fraction == 0.01 and quarc.calendar.interval == 50
    assert (quarc.correction.balance, quarc.correction.ratio) == ("auto", 1.0)  # ours; the paper's weight has no stated normalisation
    assert QuaRC(data(), Net(0), Net(1), epochs=2, balanced=False, balance="fixed").correction.weight == 1e5


def test_the_loss_is_distillation_and_correction():
    student, teacher = Net(0), Net(1)
    quarc = QuaRC(data(), student, teacher, epochs=4, fraction=0.1, balance="fixed", weight=50.0, distribution="flat")
    loss, logits = quarc.loss(inputs())
    found = CascadedCorrection(Net(0), teacher, distribution="flat")(inputs())
    taught = teacher(inputs())
    kd = -(taught.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, kd + 50 * found.correction)
    torch.testing.assert_close(quarc.correction.last_ratio, (50 * found.correction / kd).detach())
    assert torch.equal(logits, found.logits) and torch.equal(quarc.teacher_logits, taught) and not quarc.teacher_logits.requires_grad
    loss.backward()
    assert all(p.grad is not None for p in student.parameters()) and all(p.grad is None for p in teacher.parameters())


def test_loss_weights_of_the_selection_count_in_both_parts():
    student, teacher = Net(0).eval(), Net(1)
    quarc = QuaRC(data(), student, teacher, epochs=4, interval=1, fraction=0.8, method="infobatch", balance="fixed", weight=50.0, seed=1)
    quarc.begin_epoch(0)
    indices = quarc.selection.indices[::5]
    x, weights = data().tensors[0][indices], quarc.sampler.loss_weights(indices)
    assert weights.unique().numel() > 1
    with pytest.raises(InputError, match=r"method='infobatch' gives samples loss weights; pass loss\(x, indices\)"):
        quarc.loss(x)
    loss, logits = quarc.loss(x, indices)
    kd = -(teacher(x).softmax(1) * logits.log_softmax(1)).sum(1)
    correction = CascadedCorrection(student, teacher)(x, weights=weights).correction
    torch.testing.assert_close(loss, (kd * weights).mean() + 50 * correction)


def start(score_source="pass"):
    student = fq.quantize(Net(1).eval(), "w2a32", skip=())
    quarc = QuaRC(
        data(), student, TeacherCache(Net(1)), epochs=6, interval=2, fraction=0.2, normalize="rank", seed=3,
        score_source=score_source,
    )  # fmt: skip
    return student, quarc


def train(quarc, student, epochs, log):
    optimizer = torch.optim.SGD(fq.param_groups(student, lr=0.02))
    indexed = fq.selection.IndexedDataset(data())
    for epoch in epochs:
        quarc.begin_epoch(epoch)
        student.train()
        for x, y, index in DataLoader(indexed, 12, sampler=quarc.sampler):
            loss, logits = quarc.loss(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            quarc.observe(index, logits, y, quarc.teacher_logits)
            log.append(loss.item())
        quarc.end_epoch()
    return log


@pytest.mark.parametrize("score_source", ["pass", "train"])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, score_source):
    student, quarc = start(score_source)
    whole = train(quarc, student, range(6), [])
    first, broken = start(score_source)
    log = train(broken, first, range(3), [])
    torch.save({"model": first.state_dict(), "quarc": broken.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second, resumed = start(score_source)
    second.load_state_dict(state["model"])
    resumed.load_state_dict(state["quarc"])
    assert train(resumed, second, range(3, 6), log) == whole
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in student.state_dict().items())
    other = QuaRC(data(), Net(0), Net(1), epochs=6, interval=2, fraction=0.2, seed=3)
    with pytest.raises(CheckpointError, match="normalize 'rank' .here 'none'."):
        other.load_state_dict(state["quarc"])


def test_what_is_refused():
    with pytest.raises(InputError, match="normalize must be one of 'none', 'rank', 'zscore'; got 'minmax'"):
        QuaRCSubset(data(), Net(0), Net(1), epochs=2, fraction=0.1, normalize="minmax")
    with pytest.raises(InputError, match="teacher must be the full-precision model: its layers are compared"):
        QuaRC(data(), Net(0), torch.zeros(N, CLASSES), epochs=2, fraction=0.1)
    with pytest.raises(InputError, match="selects none|leaves class|no sample"):
        QuaRC(data(), Net(0), Net(1), epochs=2, fraction=0.001)
    with pytest.raises(InputError, match="compares with a teacher"):
        QuaRCSubset(data(), Net(0), None, epochs=2, fraction=0.1)


def gradients_of_two(grad: str, block_input: str, path) -> None:
    """The plain DistributedDataParallel around the student; halves of one batch on two processes."""
    torch.set_num_threads(1)
    with started() as (rank, size):
        student = Net(0).eval()  # no batch statistics: the halves add up to the whole
        quarc = QuaRC(data(), DistributedDataParallel(student), Net(1), epochs=2, fraction=0.2, grad=grad, block_input=block_input)
        for _ in range(2):
            student.zero_grad()
            quarc.loss(inputs(8).chunk(size)[rank])[0].backward()
        states = gather_objects(quarc.correction.state_dict()["means"].tolist())
        assert states == states[:1] * world().size
        if rank == 0:
            torch.save({"grads": gradients(student), "means": quarc.correction.state_dict()["means"]}, path)


@pytest.mark.parametrize("grad, block_input", [("joint", "own"), ("block", "student")])
def test_two_processes_find_the_gradient_of_the_whole_batch(grad, block_input, tmp_path):
    ranks = Ranks(2, tmp_path / "log", gradients_of_two, grad, block_input, tmp_path / "two.pt")
    assert ranks.codes() == [0, 0], ranks.output()
    two = torch.load(tmp_path / "two.pt")
    student = Net(0).eval()
    quarc = QuaRC(data(), student, Net(1), epochs=2, fraction=0.2, grad=grad, block_input=block_input)
    for _ in range(2):
        student.zero_grad()
        quarc.loss(inputs(8))[0].backward()
    torch.testing.assert_close(two["means"], quarc.correction.state_dict()["means"])
    for name, value in gradients(student).items():
        torch.testing.assert_close(two["grads"][name], value, rtol=1e-4, atol=1e-7)


def test_a_module_in_place_of_the_cache_is_the_same():
    tables = []
    for teacher in (Net(1), TeacherCache(Net(1))):
        quarc = QuaRC(data(), Net(0), teacher, epochs=2, fraction=0.1)
        quarc.begin_epoch(0)
        tables.append(quarc.table["quarc"])
        assert isinstance(quarc.correction.teacher, nn.Module) and not quarc.correction.teacher.training
    assert torch.equal(*tables)
