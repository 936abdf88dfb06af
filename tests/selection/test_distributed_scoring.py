"""score_dataset and ACS in several processes: the numbers of one process, in all of them, and clean errors."""

import os
import signal
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from fastqat._errors import FastqatError, InputError, ProcessError
from fastqat._tensor_data import TensorData
from fastqat._torchrun import started
from fastqat.methods import ACS
from fastqat.selection import TeacherCache, score_dataset
from fastqat.selection.scoring import checkpoint as pass_checkpoint
from tests.processes import Ranks

from .scoring import CLASSES, SIZE, Calls, Counting, Mappings, SizedStream, Stream, data, net

NAMES = ["evs", "ds", "grand_last", "moderate"]
FORMS = {
    "map": data,
    "one batch": lambda: data(8),
    "fewer batches than processes": lambda: data(15),
    "stream": Stream,
    "sized stream": SizedStream,
    "loader": lambda: DataLoader(data(), 10),
    "tensors": lambda: TensorData(data().tensors[0][:, :, None], data().tensors[1], torch.zeros(8), torch.ones(8)),
}


def score(dataset, **options):
    options = {"teacher": net(1), "features": "embedding", "batch_size": 10, **options}
    return score_dataset(net(), dataset, NAMES, forward=lambda model, x: model(x.flatten(1)), **options)


def same(table, want):
    tensors = [(table[name], want[name]) for name in want] + [(table.labels, want.labels), (table.features, want.features)]
    return list(table) == list(want) and all(torch.equal(a, b) for a, b in tensors)


@contextmanager
def refused(kind, message):
    """That error and no other, with the group as usable as before."""
    with pytest.raises(kind, match=message) as caught:
        yield
    assert type(caught.value) is kind and ("\n" not in str(caught.value) or kind is ValueError)


def numbers(rank, size, folder):
    for form, make in FORMS.items():
        want = torch.load(folder / f"{form}.pt", weights_only=False)
        assert same(score(make()), want), form
    unlabelled = score_dataset(
        net(), Mappings("other"), "entropy", batch_size=10, forward=lambda model, x: model(torch.cat([x["left"], x["right"]], 1))
    )
    assert unlabelled.labels is None and unlabelled.num_samples == SIZE
    if rank == 0:
        assert same(score(data(), processes="alone"), torch.load(folder / "map.pt", weights_only=False))


def wrapped(rank, size, folder):
    """In train mode, with buffers that its forward would broadcast, and a number of batches that differs."""
    model = DistributedDataParallel(net()).train()
    table = score_dataset(model, data(), NAMES, teacher=DistributedDataParallel(net(1)), features="embedding", batch_size=10)
    assert same(table, torch.load(folder / "map.pt", weights_only=False)) and model.training


def caches(rank, size, folder):
    want = torch.load(folder / "map.pt", weights_only=False)
    own = len([i for i in range(SIZE) if i // 10 % size == rank])
    memory = TeacherCache(net(1))
    for _ in range(2):
        assert same(score(data(), teacher=memory), want)
        assert memory.forwards == own and memory.nbytes == 4 * CLASSES * own and memory.complete and memory.logits is None
    score(data(), teacher=memory, batch_size=11)
    assert memory.forwards > own
    disk = TeacherCache(net(1), path=folder / "teacher")
    for _ in range(2):
        assert same(score(data(), teacher=disk), want) and disk.forwards == own
    again = TeacherCache(net(1), path=folder / "teacher")
    assert same(score(data(), teacher=again, processes="alone"), want) and again.forwards == 0
    with refused(InputError, "the processes differ in the key= of the teacher's logits"):
        score(data(), teacher=TeacherCache(net(1), path=folder / "other", key=f"{rank}"))
    (folder / f"{rank}").mkdir()
    with (
        refused(InputError, "do not see the same .*; choose a path on a disk that all of them share")
        if rank
        else refused(ProcessError, "process 1 of")
    ):
        score(data(), teacher=TeacherCache(net(1), path=folder / f"{rank}" / "teacher"))


def errors(rank, size, folder):
    want = torch.load(folder / "map.pt", weights_only=False)

    def forward(model, x):
        if rank == 1:
            raise ValueError("no\nway")
        return model(x)

    with refused(ValueError, "no") if rank == 1 else refused(ProcessError, "process 1 of . failed: ValueError: no way"):
        score_dataset(net(), data(), forward=forward, batch_size=10)
    with refused(InputError, "same arguments in all processes; process 0 has .*, process 1"):
        score_dataset(net(), data(), ["evs"], batch_size=10 + (rank == 1))
    with refused(InputError, "unknown score 'best'") if rank == 1 else refused(ProcessError, "process 1 of . failed: unknown score"):
        score_dataset(net(), data(), ["best" if rank == 1 else "evs"])
    with refused(InputError, "processes must be 'share' or 'alone'"):
        score_dataset(net(), data(), processes="some")
    assert same(score(data()), want)
    shifted = TensorDataset(data().tensors[0] + (rank == 1), data().tensors[1])
    for name, options in (
        ("data", {}),
        ("teachers", {"teacher": net(rank)}),
        ("teachers", {"teacher": torch.full((SIZE, CLASSES), 1.0 + rank)}),
    ):
        with refused(InputError, f"the processes have different {name}; load the same"):
            score(shifted if name == "data" else data(), **options)
    with refused(InputError, "the processes have different models; load the same weights"):
        score_dataset(net(rank), data(), batch_size=10)
    student = net()
    student[1].running_mean += rank
    with pytest.warns(UserWarning, match="batch-norm statistics, differ among the processes") if rank == 0 else nullcontext():
        score_dataset(student, data(), batch_size=10)


def resumed(rank, size, folder):
    """The last process fails in its third batch; each has a checkpoint of its own and goes on where it was."""
    pass_checkpoint.SECONDS = pass_checkpoint.SHARE = 0.0
    want, student = torch.load(folder / "map.pt", weights_only=False), net()
    path, calls = folder / "resumed", Calls(3 if rank == size - 1 else None)

    def forward(model, x):
        calls.count += model is student
        if calls.count == calls.stop_at:
            raise ValueError("no way")
        return model(x)

    def run():
        cache = TeacherCache(net(1), path=path / "teacher")
        options = {"teacher": cache, "features": "embedding", "batch_size": 10, "forward": forward, "checkpoint": path / "pass"}
        return score_dataset(student, data(), NAMES, **options)

    with pytest.raises((ValueError, ProcessError)):
        run()
    assert {f"pass.{r}of{size}" for r in range(size)} < {file.name for file in path.iterdir()}
    dist.barrier()
    done, calls.stop_at = calls.count, None
    assert same(run(), want)
    own = len([b for b in range(11) if b % size == rank])
    assert calls.count == own if rank < size - 1 else calls.count == own + 1 and done == 3
    dist.barrier()
    assert [file.name for file in path.iterdir()] == ["teacher"]


def selections(rank, size, folder):
    for path in (None, folder / "acs"):
        acs = acs_of(TeacherCache(net(1), path=path))
        for epoch in range(4):
            acs.begin_epoch(epoch)
            assert torch.equal(acs.selection.indices, torch.load(folder / "acs.pt")[epoch])


def acs_of(teacher):
    return ACS(data(), net(), teacher, fraction=0.3, epochs=4, interval=1, batch_size=10, progress=False)


def everything(folder):
    warnings.simplefilter("error")
    with started() as (rank, size):
        for check in (numbers, wrapped, caches, errors, resumed, selections):
            check(rank, size, folder)


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_give_what_one_gives(tmp_path, size):
    for form, make in FORMS.items():
        torch.save(score(make()), tmp_path / f"{form}.pt")
    acs, picked = acs_of(net(1)), []
    for epoch in range(4):
        acs.begin_epoch(epoch)
        picked.append(acs.selection.indices)
    torch.save(picked, tmp_path / "acs.pt")
    ranks = Ranks(size, tmp_path, everything, tmp_path)
    assert ranks.codes() == [0] * size, ranks.output()


def killed(folder: Path) -> int:
    student = Counting(net())

    def forward(model, x):
        if os.environ["RANK"] == "1" and student.samples == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return model(x)

    try:
        with started():
            score_dataset(student, data(), teacher=TeacherCache(net(1), path=folder / "teacher"), batch_size=10, forward=forward)
    except FastqatError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 2
    return 0


def test_a_process_that_dies_ends_the_others_with_a_message(tmp_path):
    ranks = Ranks(3, tmp_path, killed, tmp_path)
    assert ranks.codes(30) == [2, -signal.SIGKILL, 2], ranks.output()
    assert "lost contact with another one, which ended" in ranks.output() and "Traceback" not in ranks.output()
    assert not (tmp_path / "teacher").exists()
