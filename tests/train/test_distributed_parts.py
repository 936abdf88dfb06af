"""What training in several processes is made of: exchanges, errors, gradients of the whole batch, and what must agree."""

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastqat import _distributed as group
from fastqat import _torchrun
from fastqat._errors import FastqatError, InputError, ProcessError
from fastqat._torchrun import started
from fastqat.nn import QConfig, calibrate, quantize
from fastqat.quantizers import QuantSpec
from fastqat.train import devices, float_stage
from fastqat.train.batches import TrainBatch, part_of
from fastqat.train.config import TrainConfig
from fastqat.train.models import make_model
from fastqat.train.parallel import Replica, check_agreement, own_batches
from fastqat.train.student import make_student
from tests.processes import Ranks

SIZES = (16, 7, 3, 2)
X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 5


def test_one_process_exchanges_nothing():
    assert group.world() == (0, 1) and group.summed(1.5, 2) == (1.5, 2.0)
    assert group.gather_objects("a") == ["a"] and group.from_first("a") == group.on_first(lambda: "a") == "a"
    with started() as here, group.all_succeed():
        assert here == (0, 1)
    with pytest.raises(InputError, match="^as it is$"), group.all_succeed():
        raise InputError("as it is")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "an hour"])
def test_the_longest_wait_is_a_setting(monkeypatch, text):
    assert group.timeout() == timedelta(minutes=30)
    monkeypatch.setenv("FASTQAT_TIMEOUT", "7200")
    assert group.timeout() == timedelta(hours=2)
    monkeypatch.setenv("FASTQAT_TIMEOUT", text)
    with pytest.raises(InputError, match=f"FASTQAT_TIMEOUT={text}; accepted: seconds above 0"):
        group.timeout()


def worker_is_killed(*call) -> None:
    raise RuntimeError("a worker was killed")


def exchange_disturbed(rank: int, size: int) -> None:
    """What DataLoader's handler raises in the middle of an exchange must not leave it half done."""
    if rank == 1:
        signal.signal(signal.SIGCHLD, worker_is_killed)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGCHLD)).start()
    else:
        time.sleep(0.3)
    assert group.gather_objects(str(rank)) == [str(r) for r in range(size)]
    assert rank != 1 or signal.getsignal(signal.SIGCHLD) is worker_is_killed


def exchange() -> None:
    with started() as (rank, size):
        rows = group.gather_rows(torch.full((rank, 2), float(rank)))
        assert [part.tolist() for part in rows] == [[[r, r]] * r for r in range(size)]
        assert group.gather_objects(str(rank)) == [str(r) for r in range(size)]
        assert group.summed(rank, 0.5) == (size * (size - 1) / 2, size / 2)
        assert group.from_first({"rank": rank}) == {"rank": 0} and group.on_first(os.getpid) == group.from_first(os.getpid())
        with started() as again:
            assert again == (rank, size)
        with group.all_succeed():
            pass
        whole = {2: [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9]], 3: [[0, 1, 2, 9], [3, 4, 5], [6, 7, 8]]}
        assert own_batches(10, 3).tolist() == whole[size][rank] and own_batches(2, 3).tolist() == [[0, 1], [], []][rank]
    assert group.world() == (0, 1)
    with started() as (rank, size):
        assert group.summed(1) == (size,), "a second group finds its own members"
        exchange_disturbed(rank, size)
        with pytest.raises(ZeroDivisionError), group.exchanging():
            _ = 1 // 0
        with pytest.raises(ProcessError, match=f"process {rank} of {size} is out of step"):
            group.gather_objects(0)


@pytest.mark.parametrize("size", [2, 3])
def test_exchanges(tmp_path, size):
    ranks = Ranks(size, tmp_path, exchange)
    assert ranks.codes() == [0] * size, ranks.output()


def fails(where: str, rank: int) -> None:
    """The block of `fail`; process 0 is the last to leave after its own error."""
    if where == "on the first":
        try:
            group.on_first(lambda: 1 // 0)
        finally:
            time.sleep(0.2 if rank == 0 else 0)
    elif where == "on one":
        with group.all_succeed():
            if rank == 1:
                raise InputError("no way")
    elif rank != 1:
        pass
    elif where == "alone":
        raise InputError("no way")
    elif where == "data":
        with group.exchanging():
            raise RuntimeError("Connection refused by gloo's storage")
    elif where == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif where == "slow":
        time.sleep(1.5)
    group.gather_objects(rank)


def fail(where: str) -> int:
    _torchrun._LEAVE = 0.7
    os.environ["FASTQAT_TIMEOUT"] = "0.5" if where == "slow" else "60"
    try:
        with started() as (rank, _):
            fails(where, rank)
    except (FastqatError, ZeroDivisionError, RuntimeError) as error:
        told = isinstance(error, ProcessError) and error.told
        print(f"{type(error).__name__}{' told' if told else ''}: {error}", flush=True)
        return 2
    return 0


@pytest.mark.parametrize(
    ("where", "first", "message"),
    [
        ("on the first", "ZeroDivisionError: ", "process 0 of 3 failed: ZeroDivisionError: integer division or modulo by zero"),
        ("on one", "InputError: ", "process 1 of 3 failed: no way"),
        ("alone", "InputError: no way", "process 1 of 3 failed: no way"),
        ("data", "RuntimeError: Connection refused by gloo's storage", "process 1 of 3 failed: RuntimeError: Connection refused"),
        ("killed", "ProcessError: process ", "lost contact with another one, which ended, or"),
        ("slow", "ProcessError: process ", "was waited for longer than 0.5 s (FASTQAT_TIMEOUT)"),
    ],
)
def test_an_error_ends_all_and_is_told_once(tmp_path, where, first, message):
    ranks = Ranks(3, tmp_path, fail, where)
    assert ranks.codes(20) == [2, -signal.SIGKILL if where == "killed" else 2, 2], ranks.output()
    lines = [line for line in ranks.output().splitlines() if not line.startswith("[")]  # those are gloo's
    untold = [line for line in lines if " told: " not in line]
    assert len(untold) == 1 and untold[0].startswith(first) and message in ranks.output(), lines


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("samples", [1, 2, 3, 7, 16, 41])
def test_parts_of_a_batch(samples, processes):
    parts = [part_of(samples, group.World(rank, processes)) for rank in range(processes)]
    rows = [list(range(samples))[part] for part, _ in parts]
    assert [i for own, (_, share) in zip(rows, parts, strict=True) if share for i in own] == list(range(samples))
    assert min(map(len, rows)) >= min(2, samples)
    means = [sum(own) / len(own) for own in rows]
    assert sum(share * mean for (_, share), mean in zip(parts, means, strict=True)) / processes == pytest.approx((samples - 1) / 2)


def net(grad_factor: str) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(16, 5))
    specs = QuantSpec(4, grad_factor=grad_factor), QuantSpec(4, "lsq_plus", symmetric=False, signed=False, grad_factor=grad_factor)
    return calibrate(quantize(layers, QConfig(*specs), skip=("first",)), [X])


def gradients(grad_factor: str) -> list[dict[str, torch.Tensor]]:
    """Of each batch size: this process's part of it, through `Replica`."""
    replica, found = Replica(net(grad_factor)), []
    for size in SIZES:
        rows, share = part_of(size, group.world())
        for batch in replica.follow([TrainBatch(X[:size][rows], Y[:size][rows], torch.arange(size)[rows], share)]):
            replica.model.zero_grad()
            (F.cross_entropy(replica.module(batch.x), batch.y) * batch.share).backward()
        found.append({name: p.grad.clone() for name, p in replica.model.named_parameters()})
    return found


def save_gradients(folder: Path) -> None:
    with started() as (rank, _):
        torch.save({factor: gradients(factor) for factor in ("paper", "per_scale")}, folder / f"{rank}.pt")


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_are_those_of_the_whole_batch(tmp_path, size):
    """Step sizes and offsets included, whose factor may count the samples of the batch; batches too small for all processes too."""
    ranks = Ranks(size, tmp_path, save_gradients, tmp_path)
    assert ranks.codes() == [0] * size, ranks.output()
    every = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(size)]
    for factor in ("paper", "per_scale"):
        for i, whole in enumerate(gradients(factor)):
            assert any("activation_quantizer.offset" in name for name in whole)
            for name, want in whole.items():
                assert all(torch.equal(each[factor][i][name], every[0][factor][i][name]) for each in every), name
                torch.testing.assert_close(every[0][factor][i][name], want, rtol=2e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def statistics() -> None:
    with started() as (rank, size):
        model = quantize(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)), QConfig(QuantSpec(4), QuantSpec(4, "minmax")), skip=())
        calibrate(model, [torch.ones(2, 2)])
        replica = Replica(model)
        with torch.no_grad():
            model[0].running_mean.fill_(rank)
            model[1].activation_quantizer.high.fill_(rank + 7)
        replica.end_epoch()
        assert model[0].running_mean.tolist() == [(size - 1) / 2] * 2 and model[1].activation_quantizer.high.tolist() == [7.0]
        check_agreement(model, [torch.arange(3), None], "now")
        with pytest.raises(FastqatError, match="the selected samples of process 1, 2 differ from those of process 0 now"):
            check_agreement(model, [torch.tensor([0, 1, min(rank, 1)])], "now")
        with torch.no_grad():
            model[1].bias[0] += 1e-7 if rank == 2 else 0
        with pytest.raises(FastqatError, match="the weights of process 2 differ"):
            check_agreement(model, [torch.arange(3)], "now")


def test_statistics_meet_and_differences_are_found(tmp_path):
    ranks = Ranks(3, tmp_path, statistics)
    assert ranks.codes() == [0] * 3, ranks.output()


@pytest.mark.parametrize(
    ("name", "local", "message"),
    [
        ("cuda:1", "0", "device 'cuda:1' is one GPU for 4 processes; use auto or cuda"),
        ("cuda", "2", "process 3 has no GPU .* has 2; start as many"),
    ],
)
def test_each_process_has_its_gpu(monkeypatch, name, local, message):
    monkeypatch.setattr(devices, "world", lambda: group.World(3, 4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setenv("LOCAL_RANK", local)
    with pytest.raises(InputError, match=message):
        devices.pick_device(name)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.pick_device("cuda") == torch.device("cuda", 1) and devices.pick_device("cpu") == torch.device("cpu")


def test_float_weights_are_shared_by_runs_with_as_many_processes(monkeypatch):
    alone = float_stage.cache_key("key", torch.device("cpu"))
    monkeypatch.setattr(float_stage, "world", lambda: group.World(1, 2))
    assert float_stage.cache_key("key", torch.device("cpu")) != alone


def test_synchronised_batch_norm_is_the_same_model():
    """It trains on GPUs only; what it saves and how it predicts is that of batch norm."""
    torch.manual_seed(0)
    model = make_model("resnet8", 5, (3, 8, 8)).eval()
    x, keys = torch.randn(2, 3, 8, 8), list(model.state_dict())
    want = model(x)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    student = make_student(TrainConfig(qconfig="w8a32"), synced)
    assert list(synced.state_dict()) == keys and torch.equal(synced(x), want)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in student.modules()) == sum("running_mean" in key for key in keys) > 0
